"""Plain UTF-8 text files, one document each. A file must fit in memory; use JSON lines for larger collections."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextFiles(Source):
    """Every file that matches `glob`, a local path or any fsspec URL: TextFiles(glob='books/**/*.txt').

    Links are followed, wildcards skip hidden names, and .gz, .bz2, .xz, .lzma and .zst files are decompressed.
    """

    glob: Glob
    paper: ClassVar[str] = "common practice"

    def check(self) -> None:
        files.matched(self.glob)

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            with reading(file.path, what="text"), file.open() as stream:
                text = self._text(file, stream.read())
            yield Document(file.key, text)

    def expected_documents(self) -> int:
        return len(files.matched(self.glob))

    def fingerprint(self) -> str:
        return files.fingerprint(self.glob)

    def _text(self, file: files.File, content: bytes) -> str:
        try:
            if b"\0" in content:
                raise ValueError(f"a zero byte at offset {content.index(0)}")
            return content.decode("utf-8-sig")  # a byte-order mark is not text
        except ValueError as e:  # UnicodeDecodeError is one
            raise Unusable(
                f"glob={self.glob!r} matches {file.path}, which is not UTF-8 text ({e}). "
                "Narrow the glob, or convert the file to UTF-8."
            ) from e
