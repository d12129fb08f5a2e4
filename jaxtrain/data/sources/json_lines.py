"""JSON lines: one object a line, the text in one of its fields. Compressed files are read as they are."""

import dataclasses
import json
from collections.abc import Iterator

from jaxtrain.data.sources import files
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.paths import Glob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines(Source):
    """Every line of every file that matches `glob`; blank lines are passed over. A key is file:line, from 1."""

    glob: Glob
    field: str = "text"

    def documents(self) -> Iterator[Document]:
        for file in files.matched(self.glob):
            for number, line in enumerate(files.lines(file), start=1):
                if line.strip():
                    key = f"{file.key}:{number}"
                    yield Document(key, self._text(f"{file.path}:{number}", line))

    def fingerprint(self) -> str:
        return f"{self.field!r}\n" + files.fingerprint(files.matched(self.glob))

    def _text(self, where: str, line: bytes) -> str:
        try:
            record = json.loads(line)
        except ValueError as e:
            raise ValueError(f"glob={self.glob!r}: {where} is not JSON ({e}). Narrow the glob or mend the line.") from e
        if not isinstance(record, dict) or not isinstance(record.get(self.field), str):
            has = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"field={self.field!r} of {where} must be a text; the line has {has}. Name another field.")
        text = record[self.field]
        # JSON can escape half a surrogate pair, which no encoding of text accepts.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if b"\\u" in line else text
