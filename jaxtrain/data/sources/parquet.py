"""Parquet files, the text in one column, read a batch of rows at a time and no other column."""

import dataclasses
from collections.abc import Iterator

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.paths import Glob

_ROWS_A_READ = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Parquet(Source):
    """Every row of every file that matches `glob`; nulls are passed over. A key is file:row, from 0."""

    glob: Glob
    column: str = "text"

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            # Parquet compresses inside the file, so the name says nothing about how to open it.
            with file.filesystem.open(file.path, "rb") as stream:
                for row, text in enumerate(self._texts(file, stream)):
                    if text is not None:
                        yield Document(f"{file.key}:{row}", text)

    def fingerprint(self) -> str:
        return f"{self.column!r}\n" + files.fingerprint(files.matched(self.glob))

    def _texts(self, file: files.File, stream) -> Iterator[str | None]:
        import pyarrow  # half a second that other sources need not wait for
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.ParquetFile(stream)
        except pyarrow.ArrowInvalid as e:
            raise ValueError(f"glob={self.glob!r} matches {file.path}, which is not Parquet ({e}). Narrow it.") from e
        names = table.schema_arrow.names
        if self.column not in names:
            raise ValueError(f"column={self.column!r} is not in {file.path}; it has {names}. Name one of these.")
        kind = table.schema_arrow.field(self.column).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise ValueError(f"column={self.column!r} of {file.path} holds {kind}, not text. Name a column of text.")
        for batch in table.iter_batches(batch_size=_ROWS_A_READ, columns=[self.column]):
            yield from batch.column(0).to_pylist()
