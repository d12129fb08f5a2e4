"""The live progress bar: step, loss, tokens a second, MFU where the device's peak is known, time left."""

import time

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxtrain.planning.peaks import peak_flops


class Speed:
    """Tokens a second over the recent steps; time spent between steps, in hooks and compilation, is left out."""

    SMOOTHING = 0.9

    def __init__(self):
        self._since: float | None = None
        self._seconds_per_token: float | None = None

    def pause(self) -> None:
        """Do not count the time until the next step is done: it holds something other than a step."""
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


class Bar:
    """A rich progress bar; only the first process shows it."""

    def __init__(self, total: int, *, start: int, shown: bool):
        self.console = Console(quiet=not shown)
        columns = [
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        ]
        self._progress = Progress(*columns, console=self.console, disable=not shown)
        self._task = self._progress.add_task("train", total=total, completed=start, numbers="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def update(self, step: int, numbers: dict[str, float]) -> None:
        parts = [f"loss {numbers['loss']:.4f}"]
        if "tokens_per_second" in numbers:
            parts.append(f"{numbers['tokens_per_second']:,.0f} tokens/s")
        if "mfu" in numbers:
            parts.append(f"MFU {numbers['mfu']:.1%}")
        self._progress.update(self._task, completed=step, numbers="  ".join(parts))
