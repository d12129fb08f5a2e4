"""Stopping, or saving, on all processes after the same step.

A run stops on request (SIGTERM, SIGHUP, Ctrl-C), or because one process cannot write. It saves when the clock of one
process says so.
"""

import contextlib
import enum
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.train import distributed
from jaxtrain.train.folder import SaveError


class Decision(enum.IntEnum):
    """What all processes do next. Of different wishes the greatest is done; FAIL raises."""

    GO_ON = 0
    SAVE = 1
    STOP = 2
    FAIL = 3


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None  # what signal.signal returns


class Stop:
    """Handles the signals in a `with`, but not a SIGHUP that is ignored (nohup). A second Ctrl-C interrupts at once."""

    def __init__(self):
        self._asked = False
        self._failure: SaveError | None = None
        self._answer: jax.Array | None = None
        self._before: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # Python allows no other thread to
            self._before = {number: signal.signal(number, self._ask) for number in _handled()}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set from Python

    def _ask(self, number, frame) -> None:
        self._asked = True
        before = self._before.get(signal.SIGINT)
        signal.signal(signal.SIGINT, before if callable(before) else signal.default_int_handler)

    def report(self, failure: SaveError) -> None:
        """Take a failure to write. A single process raises it at once; several raise it together, when they next agree.

        If one process ended alone, the others would wait for it in the next collective.
        """
        if jax.process_count() == 1:
            raise failure
        self._failure = self._failure or failure

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Pass a SaveError that is raised in the `with` to `report`."""
        try:
            yield
        except SaveError as failure:
            self.report(failure)

    def decided(self, *, save: bool = False) -> Decision:
        """Return what to do now, if this process would `save`. All processes must call this at the same points.

        With several processes the answer is to the wishes of the previous call. The devices have computed it by now, so
        that no process waits for the current step.

        Raises:
            SaveError: on every process, if one of them reported it.
        """
        if jax.process_count() == 1:
            return self._wish(save)
        answer = Decision.GO_ON if self._answer is None else Decision(int(self._answer))
        if answer is Decision.FAIL:
            self._fail()
        self._answer = _greatest(self._wish(save and answer is not Decision.SAVE))  # it is done, once
        return answer

    def _wish(self, save: bool) -> Decision:
        if self._failure:
            return Decision.FAIL
        return Decision.STOP if self._asked else Decision.SAVE if save else Decision.GO_ON

    def settle(self) -> None:
        """Raise SaveError on every process if one reported it since they last agreed. Call it at the end of a run."""
        if distributed.anywhere(self._failure is not None):
            self._fail()

    def _fail(self) -> None:
        elsewhere = RuntimeError("another process could not write to the run folder, and says why")
        raise self._failure or SaveError("the run ends", elsewhere)


def _handled() -> list[signal.Signals]:
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def _greatest(number: int) -> jax.Array:
    """Return the greatest number of all processes, without waiting until it is computed."""
    compute, sharding = _greatest_computation()
    local = np.full(jax.local_device_count(), number)
    return compute(jax.make_array_from_process_local_data(sharding, local))


@functools.cache
def _greatest_computation():
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    return jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P())), NamedSharding(mesh, P("all"))
