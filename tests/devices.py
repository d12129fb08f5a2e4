"""Simulated devices of processes that tests start; tests/conftest.py says how many this one has."""

import os


def xla_flags(devices: int) -> str:
    """Return this process's XLA_FLAGS, of the processor and the compiler too, with another number of devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
