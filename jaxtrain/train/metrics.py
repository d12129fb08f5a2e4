"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases if asked."""

import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from jaxtrain.train.folder import SaveError, saving, write_whole

METRICS = "metrics.jsonl"
Numbers = dict[str, float]


class Sink(Protocol):
    def write(self, step: int, numbers: Numbers) -> None: ...

    def flush(self) -> None:
        """See to it that what was written survives the process and the machine."""

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, flushed as it is written. On resuming, lines after the restored step are dropped."""

    def open(self, folder: Path, *, from_step: int) -> Sink:
        path = folder / METRICS
        kept = [record for record in read_metrics(path) if record["step"] <= from_step] if path.exists() else []
        write_whole(path, "".join(map(_line, kept)))
        return _JsonLinesSink(path.open("a", buffering=1))


class _JsonLinesSink:
    def __init__(self, file: TextIO):
        self._file = file

    def write(self, step: int, numbers: Numbers) -> None:
        self._file.write(_line({"step": step, **numbers}))

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _line(record: dict) -> str:
    """Return a record as a line; JSON has no word for a number that is not finite, so it is null."""
    plain = {name: value if math.isfinite(value) else None for name, value in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict]:
    """Return the records of a metrics.jsonl, without a last line that was cut off in the middle; null is NaN."""
    lines = path.read_text().split("\n")
    records = map(json.loads, lines[:-1])
    return [{name: math.nan if value is None else value for name, value in record.items()} for record in records]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBoard:
    """Event files in the run folder's `tensorboard`."""

    def open(self, folder: Path, *, from_step: int) -> Sink:
        return _TensorBoardSink(folder / "tensorboard", from_step)


class _TensorBoardSink:
    """Writes events itself: the threads of tensorboardX's SummaryWriter block for ever when the disk is full."""

    def __init__(self, folder: Path, from_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{uuid.uuid4().hex[:8]}")
        # Tells TensorBoard to forget what an earlier process wrote for these steps.
        self._writer.write_event(Event(step=from_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: Numbers) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsAndBiases:
    """A run of Weights & Biases named after the run folder. Needs the extra `wandb`."""

    project: str

    def open(self, folder: Path, *, from_step: int) -> Sink:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("WeightsAndBiases needs the package wandb: install jaxtrain[wandb]") from error
        known = folder / "wandb_id.txt"  # so that a resumed run goes on in the same place
        if not known.exists():
            write_whole(known, uuid.uuid4().hex)
        run = wandb.init(project=self.project, name=folder.name, dir=str(folder), id=known.read_text(), resume="allow")
        return _WeightsAndBiasesSink(run)


class _WeightsAndBiasesSink:
    def __init__(self, run):
        self._run = run

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(numbers, step=step)

    def flush(self) -> None:
        """Leave it to the service's own process."""

    def close(self) -> None:
        self._run.finish()


def _raise(failure: SaveError) -> None:
    raise failure


Writer = TensorBoard | WeightsAndBiases


class Metrics:
    """All sinks of a run as one; only the first process writes. `report` takes a sink's failure, or raises it."""

    def __init__(
        self,
        folder: Path,
        writers: tuple[Writer, ...],
        *,
        from_step: int,
        writes: bool,
        report: Callable[[SaveError], None] = _raise,
    ):
        self._folder, self._report = folder, report
        self._sinks: list[Sink] = []
        self._opened = contextlib.ExitStack()
        with self._reported(), contextlib.ExitStack() as opened:
            if writes:
                folder.mkdir(parents=True, exist_ok=True)
                for writer in (JsonLines(), *writers):
                    sink = writer.open(folder, from_step=from_step)
                    self._sinks.append(opened.enter_context(contextlib.closing(sink)))
            self._opened = opened.pop_all()

    def write(self, step: int, numbers: Numbers) -> None:
        with self._reported():
            for sink in self._sinks:
                sink.write(step, numbers)

    def flush(self) -> None:
        with self._reported():
            for sink in self._sinks:
                sink.flush()

    def close(self) -> None:
        with self._reported():
            self._opened.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            with saving(f"metrics could not be written to {self._folder}"):
                yield
        except SaveError as failure:
            self._report(failure)
