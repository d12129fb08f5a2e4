"""Parquet files with the text in columns. Only these columns are read, one batch of rows at a time."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from jaxtrain.data.sources import fields, files
from jaxtrain.data.sources.base import Document, Record, Records
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob

_ROWS_A_READ = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parquet(Records):
    """Every row of every file that matches `glob`; nulls are skipped. A key is file:row, from 0.

    The text is in `column`, or is what a Jinja `template` makes of several, such as '{{ title }}: {{ body }}'. `weight`
    names the column with the weight of the loss on a document.
    """

    glob: Glob
    column: str = "text"
    template: str | None = None
    weight: str | None = None
    paper: ClassVar[str] = "parquet.apache.org"

    def __post_init__(self):
        fields.check(self.template, column=self.column)

    def check(self) -> None:
        files.matched(self.glob)

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            # Parquet compresses inside the file, so its suffix must not decide how to open it.
            with reading(file.path, what="Parquet", unit="row") as place, file.open_as_it_is() as stream:
                table = _table(stream)
                if self.template is None:
                    self._check_text(file, table)
                there = self._columns(file, table)
                for row, values in place.each(_rows(table, there), first=0):
                    record = Record(f"{file.key}:{row}", str(place), values)
                    found = fields.document(
                        record,
                        template=self.template,
                        weight=self.weight,
                        column=self.column,
                        names=table.schema_arrow.names,
                    )
                    if found is not None:
                        yield found

    def records(self) -> Iterator[Record]:
        for file in files.matched(self.glob):
            with reading(file.path, what="Parquet", unit="row") as place, file.open_as_it_is() as stream:
                for row, values in place.each(_rows(_table(stream), None), first=0):
                    yield Record(f"{file.key}:{row}", str(place), values)

    def expected_documents(self) -> int:
        import pyarrow.parquet

        rows = 0
        for file in files.matched(self.glob):
            with reading(file.path, what="Parquet", unit="row"), file.open_as_it_is() as stream:
                rows += pyarrow.parquet.read_metadata(stream).num_rows
        return rows

    def fingerprint(self) -> str:
        return f"{self.column!r} {self.template!r} {self.weight!r}\n" + files.fingerprint(self.glob)

    def _columns(self, file: files.File, table) -> list[str]:
        """Return the columns to read, of those that a template names only the ones that there are."""
        names = table.schema_arrow.names
        wanted = fields.columns(self.column, self.template, self.weight)
        for name in wanted:
            if names.count(name) > 1:
                raise Unusable(f"{file.path} has {names.count(name)} columns {name!r}. Give them other names.")
        return [name for name in wanted if name in names]

    def _check_text(self, file: files.File, table) -> None:
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
