"""JSON lines: one object a line, with the text in one of its fields. Compressed files are decompressed."""

import dataclasses
import json
from collections.abc import Iterator
from typing import ClassVar

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines(Source):
    """Every line of every file that matches `glob`, but blank ones and nulls. A key is file:line, from 1."""

    glob: Glob
    field: str = "text"
    paper: ClassVar[str] = "jsonlines.org"

    def check(self) -> None:
        files.matched(self.glob)

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            with reading(file.path, what="JSON lines", unit="line") as place, file.open() as stream:
                for number, line in place.each(stream, first=1):
                    text = self._text(str(place), line) if line.strip() else None
                    if text is not None:
                        yield Document(f"{file.key}:{number}", text)

    def fingerprint(self) -> str:
        return f"{self.field!r}\n" + files.fingerprint(self.glob)

    def _text(self, where: str, line: bytes) -> str | None:
        record = json.loads(line.decode("utf-8-sig"))  # from bytes, json would accept halves of surrogate pairs
        if not isinstance(record, dict) or not isinstance(record.get(self.field, 0), str | None):
            has = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise Unusable(f"field={self.field!r} of {where} must be a text; the line has {has}. Name another field.")
        text = record[self.field]
        # JSON can escape half of a surrogate pair, which UTF-8 cannot encode: replace it by U+FFFD.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if text and b"\\u" in line else text
