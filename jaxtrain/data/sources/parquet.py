"""Parquet files with the text in one column. Only this column is read, one batch of rows at a time."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob

_ROWS_A_READ = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parquet(Source):
    """Every row of every file that matches `glob`; nulls are skipped. A key is file:row, from 0."""

    glob: Glob
    column: str = "text"
    paper: ClassVar[str] = "parquet.apache.org"

    def check(self) -> None:
        files.matched(self.glob)

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            # Parquet compresses inside the file, so its suffix must not decide how to open it.
            with reading(file.path, what="Parquet", unit="row") as place, file.open_as_it_is() as stream:
                for row, text in place.each(self._texts(file, stream), first=0):
                    if text is not None:
                        yield Document(f"{file.key}:{row}", text)

    def fingerprint(self) -> str:
        return f"{self.column!r}\n" + files.fingerprint(self.glob)

    def _texts(self, file: files.File, stream) -> Iterator[str | None]:
        import pyarrow.parquet  # imported here, because it takes half a second that other sources do not need

        table = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
        names = table.schema_arrow.names
        if names.count(self.column) != 1:
            raise Unusable(f"column={self.column!r} is not one of {file.path}; it has {names}. Name one of these.")
        kind = table.schema_arrow.field(self.column).type
        if not _is_text(kind):
            raise Unusable(f"column={self.column!r} of {file.path} holds {kind}, not text. Name a column of text.")
        rows = 0
        for batch in table.iter_batches(batch_size=_ROWS_A_READ, columns=[self.column]):
            batch.validate(full=True)
            rows += len(batch)
            yield from batch.column(0).to_pylist()
        if rows != table.metadata.num_rows:
            raise ValueError(f"it should have {table.metadata.num_rows} rows")


def _is_text(kind) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))
