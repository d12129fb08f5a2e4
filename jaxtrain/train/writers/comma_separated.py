"""A table of all numbers, for spreadsheets."""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtrain.train.folder import write_whole
from jaxtrain.train.writers.base import Numbers, Sink, Writer


@dataclass(frozen=True, kw_only=True, slots=True)
class CSV(Writer):
    """A table in the run folder's metrics.csv: a row for each step, a column for each number."""

    paper: ClassVar[str] = "RFC 4180"

    def open(self, folder: Path, *, from_step: int) -> Sink:
        return _CSVSink(folder / "metrics.csv", from_step)


class _CSVSink:
    """Appends rows. A number that no row had before is a new column, for which the file is written anew."""

    def __init__(self, path: Path, from_step: int):
        self._path = path
        columns, rows = _read(path)
        self._columns = columns or ["step"]
        self._rewrite([row for row in rows if int(row["step"]) <= from_step])

    def write(self, step: int, numbers: Numbers) -> None:
        row: dict[str, object] = {"step": step, **numbers}
        if new := [name for name in row if name not in self._columns]:
            self._file.close()
            self._columns += new
            self._rewrite(_read(self._path)[1])
        self._file.write(_text([row], self._columns))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        write_whole(self._path, _text([header, *rows], self._columns))
        self._file = self._path.open("a", encoding="utf-8", newline="", buffering=1)

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _text(rows: list[dict], columns: list[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows of a table, without a last line that a killed process left unfinished.

    Raises:
        ValueError: it is not a table of steps.
    """
    if not path.exists():
        return [], []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    table = csv.DictReader(io.StringIO(whole))
    rows, columns = list(table), list(table.fieldnames or ())
    if columns and not all("step" in row and (row["step"] or "").isdecimal() for row in rows):
        raise ValueError(f"{path} is not the table of a run: move it away, or leave out the writer CSV")
    return columns, rows
