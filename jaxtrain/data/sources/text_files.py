"""Plain UTF-8 text files, one document each. A document must fit in memory; JSON lines suit larger collections."""

import dataclasses
from collections.abc import Iterator

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.paths import Glob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextFiles(Source):
    """Every file that matches `glob`, a local path or any fsspec URL: TextFiles(glob='books/**/*.txt')."""

    glob: Glob

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            with file.open() as stream:
                yield Document(file.key, self._text(file, stream.read()))

    def fingerprint(self) -> str:
        return files.fingerprint(files.matched(self.glob))

    def _text(self, file: files.File, content: bytes) -> str:
        try:
            if b"\0" in content:
                raise ValueError(f"a zero byte at offset {content.index(0)}")
            return content.decode("utf-8-sig")  # a byte-order mark is not text
        except ValueError as e:  # UnicodeDecodeError is one
            raise ValueError(
                f"glob={self.glob!r} matches {file.path}, which is not UTF-8 text ({e}). "
                "Narrow the glob, or convert the file to UTF-8."
            ) from e
