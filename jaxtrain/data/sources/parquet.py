"""Parquet files with the text in one column. Only this column is read, one batch of rows at a time."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Record, Records
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob

_ROWS_A_READ = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parquet(Records):
    """Every row of every file that matches `glob`; nulls are skipped. A key is file:row, from 0."""

    glob: Glob
    column: str = "text"
    paper: ClassVar[str] = "parquet.apache.org"

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            # Parquet compresses inside the file, so its suffix must not decide how to open it.
            with reading(file.path, what="Parquet", unit="row") as place, file.open_as_it_is() as stream:
                table = _table(stream)
                self._check_column(file, table)
                for row, fields in place.each(_rows(table, [self.column]), first=0):
                    if fields[self.column] is not None:
                        yield Document(f"{file.key}:{row}", fields[self.column])

    def records(self) -> Iterator[Record]:
        for file in files.matched(self.glob):
            with reading(file.path, what="Parquet", unit="row") as place, file.open_as_it_is() as stream:
                for row, fields in place.each(_rows(_table(stream), None), first=0):
                    yield Record(f"{file.key}:{row}", str(place), fields)

    def fingerprint(self) -> str:
        return f"{self.column!r}\n" + files.fingerprint(self.glob)

    def _check_column(self, file: files.File, table) -> None:
        names = table.schema_arrow.names
        if names.count(self.column) != 1:
            raise Unusable(f"column={self.column!r} is not one of {file.path}; it has {names}. Name one of these.")
        kind = table.schema_arrow.field(self.column).type
        if not _is_text(kind):
            raise Unusable(f"column={self.column!r} of {file.path} holds {kind}, not text. Name a column of text.")


def _table(stream):
    import pyarrow.parquet  # imported here, because it takes half a second that other sources do not need

    return pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)


def _rows(table, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    """Yield every row with some columns, or with all where `columns` is None."""
    rows = 0
    for batch in table.iter_batches(batch_size=_ROWS_A_READ, columns=columns):
        batch.validate(full=True)
        rows += len(batch)
        yield from batch.to_pylist()
    if rows != table.metadata.num_rows:
        raise ValueError(f"it should have {table.metadata.num_rows} rows")


def _is_text(kind) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))
