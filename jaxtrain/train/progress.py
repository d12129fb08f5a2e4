"""The display of progress: step, loss, tokens a second, MFU where the device's peak is known, time left.

On a terminal or in a notebook it is a live bar. Elsewhere (a file, the log of a cluster's job) it is a plain line now
and then.
"""

import datetime
import time
from typing import NamedTuple, Protocol, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxtrain.planning.peaks import peak_flops


class Speed:
    """Tokens a second over the recent steps. Time between steps, in hooks and compilation, is left out."""

    SMOOTHING = 0.9

    def __init__(self):
        self._since: float | None = None
        self._seconds_per_token: float | None = None

    def pause(self) -> None:
        """Do not count the time until the next step is done: it includes other work."""
        self._since = None

    def step_done(self, tokens: int) -> float | None:
        """Return tokens a second, or None where there is no earlier step to measure from."""
        now, since = time.perf_counter(), self._since
        self._since = now
        if since is None:
            return None
        latest = (now - since) / tokens
        before = latest if self._seconds_per_token is None else self._seconds_per_token
        self._seconds_per_token = self.SMOOTHING * before + (1 - self.SMOOTHING) * latest
        return 1 / self._seconds_per_token


def model_flops_utilization(tokens_per_second: float, flops_per_token: float, devices: int) -> float | None:
    """Return the share of the devices' peak that the model's own FLOPs reach (Chowdhery et al., 2022,
    arXiv:2204.02311, appendix B); None where the peak is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else tokens_per_second * flops_per_token / (devices * peak)


class Display(Protocol):
    """Shows numbers in a `with`. Its `console` prints other lines."""

    console: Console

    def __enter__(self) -> Self: ...

    def __exit__(self, *_) -> None: ...

    def update(self, step: int, numbers: dict[str, float]) -> None: ...


def display(total: int, *, start: int, shown: bool, name: str = "") -> Display:
    """Return the display that fits the standard output. Only the first process shows it.

    A run that is one of several has a `name`, and lines, which begin with it.
    """
    console = Console(quiet=not shown)
    if (console.is_interactive or console.is_jupyter) and not name:
        return Bar(console, total, start=start)
    return Lines(console, total, name)


class Bar:
    """A rich progress bar. It is not shown if no step is left."""

    def __init__(self, console: Console, total: int, *, start: int):
        self.console = console
        columns = [
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        ]
        self._progress = Progress(*columns, console=console, disable=console.quiet or start >= total)
        self._task = self._progress.add_task("train", total=total, completed=start, numbers="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self, step: int, numbers: dict[str, float]) -> None:
        self._progress.update(self._task, completed=step, numbers=_shown(numbers))


class Lines:
    """A line for the first step and for the last, and between them at most one every `SECONDS`."""

    SECONDS = 10

    def __init__(self, console: Console, total: int, name: str = ""):
        self.console = console
        self._total, self._name = total, name
        self._first: _Moment | None = None
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None: ...

    def update(self, step: int, numbers: dict[str, float]) -> None:
        now = _Moment(step, time.perf_counter())
        first = self._first = self._first or now
        if now is not first and step < self._total and now.seconds < self._next:
            return
        self._next = now.seconds + self.SECONDS
        text = f"{self._name}step {step:,} of {self._total:,}  {_shown(numbers)}{self._left(first, now)}"
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self, first: "_Moment", now: "_Moment") -> str:
        """Return the time left at the mean pace since the first step, with the time between steps."""
        made = now.step - first.step
        if not made or now.step >= self._total:
            return ""
        seconds = (now.seconds - first.seconds) / made * (self._total - now.step)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"


class _Moment(NamedTuple):
    step: int
    seconds: float


def _shown(numbers: dict[str, float]) -> str:
    parts = [f"loss {numbers['loss']:.4f}"]
    if "tokens_per_second" in numbers:
        parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in numbers:
        parts.append(f"MFU {numbers['mfu']:.1%}")
    return "  ".join(parts)
