"""A schedule from a file: a table written by hand, saved by `jaxtrain schedule show --save`, or by PyTorch as CSV."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtrain.paths import FilePath
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.table_file import read


@dataclass(frozen=True, kw_only=True, slots=True)
class FromFile(Schedule):
    """The table as it stands, for its own number of stages and microbatches; `path` from the working directory."""

    path: FilePath
    paper: ClassVar[str] = "a table written by hand"

    def size(self) -> tuple[int, int]:
        table = read(Path(self.path))
        return len(table.stages), table.microbatches

    def table(self, stages: int, microbatches: int) -> Table:
        table = read(Path(self.path))
        _require_same(self.path, "stages", stages, len(table.stages))
        _require_same(self.path, "microbatches", microbatches, table.microbatches)
        return table


def _require_same(path: str, name: str, asked: int, there: int) -> None:
    if asked != there:
        raise ValueError(f"{name}={asked}: the table in {path} is written for {there}; nearest {there}")
