"""The recorder takes what a step measured from the devices to the metrics and the display of progress.

It reads that one step late, so that the devices work on a step while the host waits for the one before it.
"""

import time
from typing import NamedTuple

import jax

from jaxtrain.train.folder import SaveError
from jaxtrain.train.metrics import Metrics
from jaxtrain.train.progress import Display, Speed, model_flops_utilization
from jaxtrain.train.writers.base import Numbers


class _Pending(NamedTuple):
    step: int
    measured: dict[str, jax.Array]  # by the step, still on the devices
    added: Numbers  # by hooks, after it


class Recorder:
    """Shows progress in a `with`, and closes the metrics at its end. `latest` has the latest value of each number."""

    def __init__(self, metrics: Metrics, display: Display, name: str = ""):
        self._metrics, self._display, self._name = metrics, display, name
        self._began = time.perf_counter()
        self._pending: _Pending | None = None
        self.latest: Numbers = {}

    def __enter__(self) -> "Recorder":
        self._display.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._display.__exit__(kind, error, traceback)
        try:
            self._metrics.close()
        except SaveError:
            if error is None:  # otherwise the error that is being raised tells the user more
                raise

    def enter_phase(self, *, tokens_per_step: int, flops_per_token: float, devices: int) -> None:
        self._speed = Speed()
        self._tokens_per_step, self._flops_per_token, self._devices = tokens_per_step, flops_per_token, devices

    def begin(self, step: int, measured: dict[str, jax.Array]) -> None:
        """Take the measurements of a step that was just started, which the devices still compute."""
        assert self._pending is None
        self._pending = _Pending(step, measured, {})

    def add(self, numbers: Numbers) -> None:
        """Add what a hook measured after the current step."""
        assert self._pending is not None, "the step's line is written already: numbers come before checkpoints"
        self._pending.added.update(numbers)

    @property
    def added(self) -> Numbers:
        """What hooks measured after the current step so far."""
        return {} if self._pending is None else dict(self._pending.added)

    def finish(self) -> tuple[int, Numbers] | None:
        """Wait for the current step and write what it measured. Return that, or None if there is no current step."""
        if self._pending is None:
            return None
        (step, measured, added), self._pending = self._pending, None
        numbers = {name: float(value) for name, value in measured.items()} | self._speed_numbers()
        self._display.update(step, numbers)
        self.latest |= numbers | added
        self._metrics.write(step, numbers | added | {"seconds": round(time.perf_counter() - self._began, 3)})
        return step, numbers

    def interrupted(self) -> None:
        """Leave the current interval out of the speed: a hook takes time in it."""
        self._speed.pause()

    def flush(self) -> None:
        """Flush all lines up to here to the disk, so that they survive the machine."""
        self._metrics.flush()

    def say(self, text: str) -> None:
        self._display.console.print(self._name + text, markup=False, highlight=False, soft_wrap=True)

    def _speed_numbers(self) -> Numbers:
        tokens_per_second = self._speed.step_done(self._tokens_per_step)
        if tokens_per_second is None:
            return {}
        mfu = model_flops_utilization(tokens_per_second, self._flops_per_token, self._devices)
        return {"tokens_per_second": tokens_per_second} | ({} if mfu is None else {"mfu": mfu})
