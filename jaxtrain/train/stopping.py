"""Stopping on request: SIGTERM and Ctrl-C end a run after the step at hand, on all processes after the same one."""

import functools
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """In a `with`, takes the signals; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self._asked = False
        self._answer: jax.Array | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    def _ask(self, number, frame) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def decided(self) -> bool:
        """Tell whether the run is to stop now. All processes must call this at the same points.

        With several processes the answer is to the question of the call before: by now the devices have it, so that
        nobody waits for the step that they are at.
        """
        if jax.process_count() == 1:
            return self._asked
        if self._answer is not None and bool(self._answer):
            return True
        self._answer = _any(self._asked)
        return False


def _any(flag: bool) -> jax.Array:
    """Return, before it is known, whether the flag is set on any process."""
    compute, sharding = _any_computation()
    local = np.full(jax.local_device_count(), flag)
    return compute(jax.make_array_from_process_local_data(sharding, local))


@functools.cache
def _any_computation():
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P())), NamedSharding(mesh, P("all"))
