"""What the runs of a sweep came to, read from their folders: as a table, and as a file of comma-separated values."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtrain.cli.sweep_grid import Axis, Point
from jaxtrain.config import TrainConfig
from jaxtrain.train.folder import RunFolder, write_whole
from jaxtrain.train.manifest import is_finished, read_manifest
from jaxtrain.train.metrics import parse_metrics

FINISHED = "finished"
ENDED = "ended early"  # by a hook
LAST_SHARE = 10  # the loss is a mean over the last tenth of the steps


class Outcome(NamedTuple):
    """How far a run has come.

    `over` says why it is not to be run again, and is empty for a run that is not over. `losses` are the training losses
    by step. `loss` is their mean over the last tenth, `validation` the last validation loss; None where there is none.
    """

    step: int
    steps: int
    over: str
    losses: list[tuple[int, float]]
    loss: float | None
    validation: float | None
    tokens_per_second: float | None

    @property
    def is_compared(self) -> bool:
        """Whether the run has come to its end, its last step or where a hook ended it."""
        return self.over in (FINISHED, ENDED)

    @property
    def progress(self) -> str:
        return self.over or (f"step {self.step} of {self.steps}" if self.step else "not begun")


def outcome(folder: RunFolder, config: TrainConfig) -> Outcome:
    """Read a run's metrics.jsonl, and whether its last checkpoint is there."""
    records = parse_metrics(folder.metrics).records
    steps = sum(phase.steps for phase in config.phases)
    step = max((record["step"] for record in records), default=0)
    losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
    late = [loss for at, loss in losses[-max(len(losses) // LAST_SHARE, 1) :] if math.isfinite(loss)]
    validations = [record["validation_loss"] for record in records if "validation_loss" in record]
    speeds = [record["tokens_per_second"] for record in records if "tokens_per_second" in record]
    in_a_row = records[-1].get("skipped_in_a_row", 0) if records else 0
    return Outcome(
        step=step,
        steps=steps,
        over=_over(folder, step, steps) or (f"diverged at step {step}" if in_a_row >= config.max_skipped_steps else ""),
        losses=losses,
        loss=statistics.fmean(late) if late else None,
        validation=validations[-1] if validations else None,
        tokens_per_second=statistics.median(speeds) if speeds else None,
    )


def _over(folder: RunFolder, step: int, steps: int) -> str:
    """Return FINISHED where a run has made its steps and the checkpoint of the last one, if it saves any, is whole.

    Return ENDED where the checkpoint of its last step says that a hook has ended it.
    """
    last = folder.checkpoints / str(min(step, steps))
    saved = is_finished(last)
    if step >= steps and (saved or not folder.checkpoints.exists()):
        return FINISHED
    return ENDED if saved and read_manifest(last).ended else ""


def measures(outcomes: Sequence[Outcome]) -> tuple[str, list[float | None]]:
    """Return what runs are compared by, and its value for each that is finished.

    It is the validation loss if all that are finished have one, or else the training loss.
    """
    finished = [found for found in outcomes if found.is_compared]
    has_validation = bool(finished) and all(found.validation is not None for found in finished)
    values = [found.validation if has_validation else found.loss for found in outcomes]
    shown = [value if found.is_compared else None for found, value in zip(outcomes, values, strict=True)]
    return "validation loss" if has_validation else "training loss", shown


def best(outcomes: Sequence[Outcome]) -> int | None:
    """Return the index of the finished run with the least loss."""
    _, values = measures(outcomes)
    finite = [(value, index) for index, value in enumerate(values) if value is not None and math.isfinite(value)]
    return min(finite)[1] if finite else None


def table(axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[Outcome], failed: Mapping[str, str]) -> str:
    """Return the results as aligned columns, one run a line, the best one marked."""
    chosen = best(outcomes)
    rows = [["", *(axis.label for axis in axes), "loss", "validation", "tokens/s", ""]]
    for index, (point, found) in enumerate(zip(points, outcomes, strict=True)):
        note = "refused" if point.name in failed else found.progress
        numbers = [_shown(found.loss, ".4f"), _shown(found.validation, ".4f"), _shown(found.tokens_per_second, ",.0f")]
        rows.append(["*" if index == chosen else "", *point.values, *numbers, note])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if chosen is not None:
        lines.append(f"* the least {measures(outcomes)[0]} of the finished runs: {points[chosen].name}")
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def write_csv(path: Path, axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[Outcome]) -> None:
    """Write one line a run, under the whole names of the keys. What is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("step", "steps", "loss", "validation", "tokens_per_second")
    writer.writerow(["run", *(axis.key for axis in axes), *numbers, "progress"])
    for point, found in zip(points, outcomes, strict=True):
        writer.writerow([point.name, *point.values, *(getattr(found, name) for name in numbers), found.progress])
    write_whole(path, text.getvalue())
