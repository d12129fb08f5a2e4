"""What a writer is: another place, beside metrics.jsonl, for the numbers of a run."""

from abc import abstractmethod
from pathlib import Path
from typing import Protocol

from jaxtrain.technique import Technique

Numbers = dict[str, float]


class Sink(Protocol):
    def write(self, step: int, numbers: Numbers) -> None: ...

    def flush(self) -> None:
        """See to it that what was written survives the process and the machine."""

    def close(self) -> None: ...


class Writer(Technique):
    """A place for the numbers of a run, beside its metrics.jsonl. The first process alone opens it."""

    __slots__ = ()

    @abstractmethod
    def open(self, folder: Path, *, from_step: int) -> Sink:
        """Return what takes the numbers of the steps behind `from_step`, of the run in a folder."""
