"""Simulated devices of processes that tests start; tests/conftest.py says how many this one has."""

import os


def xla_flags(devices: int, *, optimized: bool = False) -> str:
    """Return this process's XLA_FLAGS, of the processor and the compiler too, with another number of devices.

    `optimized`: at the default optimization level of the compiler, as users run it.
    """
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return flags.replace(" --xla_backend_optimization_level=0", "") if optimized else flags
