"""Where the numbers of a run go: metrics.jsonl always, and whatever writers are asked for."""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from jaxtrain.train.folder import SaveError, free_name, saving, write_whole
from jaxtrain.train.writers.base import Numbers, Sink, Writer

METRICS = "metrics.jsonl"
log = logging.getLogger(__name__)


class JsonLines:
    """One JSON object a line, flushed as it is written. On resuming, lines after the restored step are dropped.

    Lines that are not the record of a step are dropped, too. Then the file as it was is kept beside the new one.
    """

    def open(self, folder: Path, *, from_step: int) -> Sink:
        path = folder / METRICS
        parsed = parse_metrics(path)
        if parsed.foreign:
            shutil.copyfile(path, free_name(folder, "damaged-metrics-{}.jsonl"))
        _log_left_out(path, parsed)
        write_whole(path, "".join(_line(record) for record in parsed.records if record["step"] <= from_step))
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
    """Return a record as a line. A number that is not finite becomes null, because JSON has none."""
    plain = {name: value if math.isfinite(value) else None for name, value in record.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


class ParsedMetrics(NamedTuple):
    """The records of a metrics.jsonl, and the numbers of other lines: `foreign` ones, and a last one that is `torn`."""

    records: list[dict]
    foreign: list[int]
    torn: list[int]  # a process was killed while it wrote the line


def read_metrics(path: Path) -> list[dict]:
    """Return the records of a metrics.jsonl, with NaN for null. Log which lines are left out because they are none."""
    parsed = parse_metrics(path)
    _log_left_out(path, parsed)
    return parsed.records


def parse_metrics(path: Path) -> ParsedMetrics:
    """Return what is in a metrics.jsonl: no records if there is no such file."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records = [_record(line) for line in lines]
    wrong = [number for number, record in enumerate(records[:-1], 1) if record is None]
    torn = [len(lines)] if lines[-1] and records[-1] is None else []
    return ParsedMetrics([record for record in records if record is not None], wrong, torn)


def _record(line: bytes) -> dict | None:
    """Return the record that a line holds, None if it holds anything else."""
    try:
        record = json.loads(line.decode())
        if not isinstance(record, dict) or type(record.get("step")) is not int or not 0 <= record["step"] < 2**63:
            return None
        return {name: math.nan if value is None else _number(value) for name, value in record.items()}
    except (ValueError, OverflowError, RecursionError):
        return None


def _number(value) -> float:
    """Return a number unchanged. Raise ValueError or OverflowError if it is none that a float can hold."""
    if type(value) not in (int, float):
        raise ValueError(f"{value=}: not a number")
    float(value)
    return value


def _log_left_out(path: Path, parsed: ParsedMetrics) -> None:
    numbers = [*parsed.foreign, *parsed.torn]
    if numbers:
        shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
        log.warning("%s: left out line %s, which is not the record of a step", path, shown)


def _raise(failure: SaveError) -> None:
    raise failure


class Metrics:
    """All sinks of a run as one. Only the first process writes. `report` gets a sink's failure, or raises it."""

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
                all_writers: tuple[JsonLines | Writer, ...] = (JsonLines(), *writers)
                for writer in all_writers:
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
