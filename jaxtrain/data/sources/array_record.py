"""ArrayRecord files whose records are UTF-8 texts.

The reader needs a path on this machine. So a remote file is copied to a temporary folder while it is read, one file at
a time. The copy is not kept, because tokenisation reads every record only once.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob

_RECORDS_A_READ = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ArrayRecord(Source):
    """Every record of every file that matches `glob`. A key is file:record, from 0."""

    glob: Glob
    paper: ClassVar[str] = "github.com/google/array_record"

    def check(self) -> None:
        files.matched(self.glob)

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            with reading(file.path, what="ArrayRecord", unit="record") as place, _local(file) as path:
                for index, record in place.each(self._records(path), first=0):
                    yield Document(f"{file.key}:{index}", self._text(str(place), record))

    def fingerprint(self) -> str:
        return files.fingerprint(self.glob)

    def _records(self, path: str) -> Iterator[bytes]:
        try:
            from array_record.python import array_record_module  # has no build for every platform
        except ImportError as e:
            raise Unusable(f"glob={self.glob!r}: array_record is not installed. Use JsonLines or Parquet.") from e
        reader = array_record_module.ArrayRecordReader(path)
        if not reader.ok():
            raise ValueError("its footer cannot be read")
        try:
            for start in range(0, reader.num_records(), _RECORDS_A_READ):
                yield from reader.read(start, min(start + _RECORDS_A_READ, reader.num_records()))
        finally:
            reader.close()

    def _text(self, where: str, record: bytes) -> str:
        try:
            return record.decode()
        except UnicodeDecodeError as e:
            raise Unusable(
                f"glob={self.glob!r}: record {where} is not UTF-8 text ({e}). Write texts, not serialised messages."
            ) from e


@contextlib.contextmanager
def _local(file: files.File) -> Iterator[str]:
    if file.is_local:
        yield file.path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder) / "copy.array_record")
        file.filesystem.get_file(file.path, copy)
        yield copy
