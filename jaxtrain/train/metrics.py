"""Where the numbers of a run go: metrics.jsonl always, TensorBoard and Weights & Biases if asked."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Numbers = dict[str, float]


class Sink(Protocol):
    def write(self, step: int, numbers: Numbers) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, flushed as it is written. On resuming, lines after the restored step are dropped."""

    def __init__(self, path: Path, *, from_step: int):
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= from_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.rename(path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, numbers: Numbers) -> None:
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # cut off in the middle by a kill
        return float("inf")


def read_metrics(path: Path) -> list[dict]:
    """Return the records of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBoard:
    """Event files in the run folder's `tensorboard`."""

    def open(self, folder: Path) -> Sink:
        from tensorboardX import SummaryWriter

        return _TensorBoardSink(SummaryWriter(str(folder / "tensorboard")))


class _TensorBoardSink:
    def __init__(self, writer):
        self._writer = writer

    def write(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsAndBiases:
    """A run of Weights & Biases named after the run folder. Needs the extra `wandb`."""

    project: str

    def open(self, folder: Path) -> Sink:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("WeightsAndBiases needs the package wandb: install jaxtrain[wandb]") from error
        return _WeightsAndBiasesSink(
            wandb.init(project=self.project, name=folder.name, dir=str(folder), resume="allow")
        )


class _WeightsAndBiasesSink:
    def __init__(self, run):
        self._run = run

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


Writer = TensorBoard | WeightsAndBiases


class Metrics:
    """All sinks of a run as one; only the first process writes."""

    def __init__(self, folder: Path, writers: tuple[Writer, ...], *, from_step: int, writes: bool):
        self._sinks: list[Sink] = []
        if writes:
            self._sinks = [JsonLines(folder / "metrics.jsonl", from_step=from_step)]
            self._sinks += [writer.open(folder) for writer in writers]

    def write(self, step: int, numbers: Numbers) -> None:
        for sink in self._sinks:
            sink.write(step, numbers)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


Report = Callable[[str], None]
