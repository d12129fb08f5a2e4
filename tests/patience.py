"""How long a test waits for what is sure to come. No claim depends on it: it ends what hangs, on any machine."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 1200


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process is to do."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_SECONDS} s"
        time.sleep(0.001)
