"""The base class of writers: other places, beside metrics.jsonl, for the numbers of a run."""

from abc import abstractmethod
from pathlib import Path
from typing import Protocol

from jaxtrain.technique import Technique

Numbers = dict[str, float]


class Sink(Protocol):
    def write(self, step: int, numbers: Numbers) -> None: ...

    def flush(self) -> None:
        """Flush what was written to the disk, so that it survives the process and the machine."""

    def close(self) -> None: ...


class Writer(Technique):
    """A place for the numbers of a run, beside its metrics.jsonl. The first process alone opens it."""

    __slots__ = ()

    def check(self) -> None:
        """Raise ValueError, before anything is prepared, for what would keep the run from writing here."""

    @abstractmethod
    def open(self, folder: Path, *, from_step: int) -> Sink:
        """Return a sink for the numbers of the steps after `from_step`, of the run in a folder."""
