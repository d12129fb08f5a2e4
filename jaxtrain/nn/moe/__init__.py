"""The parts of a mixture of experts: routers, selections, balances and dispatches."""
