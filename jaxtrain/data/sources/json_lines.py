"""JSON lines: one object a line, with the text in one of its fields. Compressed files are decompressed."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from jaxtrain.data.sources import fields, files
from jaxtrain.data.sources.base import Document, Record, Records
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines(Records):
    """Every line of every file that matches `glob`, but blank ones and nulls. A key is file:line, from 1.

    The text is in `field`, or is what a Jinja `template` makes of several, such as '{{ title }}: {{ body }}'. `weight`
    names the field with the weight of the loss on a document.
    """

    glob: Glob
    field: str = "text"
    template: str | None = None
    weight: str | None = None
    paper: ClassVar[str] = "jsonlines.org"

    def __post_init__(self):
        fields.check(self.template, field=self.field)

    def check(self) -> None:
        files.matched(self.glob)

    def documents(self) -> Iterator[Document]:
        return fields.documents(self.records(), template=self.template, weight=self.weight, field=self.field)

    def records(self) -> Iterator[Record]:
        for file in files.matched(self.glob):
            with reading(file.path, what="JSON lines", unit="line") as place, file.open() as stream:
                for number, line in place.each(stream, first=1):
                    if line.strip():
                        yield Record(f"{file.key}:{number}", str(place), _fields(str(place), line))

    def fingerprint(self) -> str:
        return f"{self.field!r} {self.template!r} {self.weight!r}\n" + files.fingerprint(self.glob)


def _fields(where: str, line: bytes) -> dict[str, Any]:
    record = json.loads(line.decode("utf-8-sig"))  # from bytes, json would accept halves of surrogate pairs
    if not isinstance(record, dict):
        raise Unusable(f"{where} is {type(record).__name__}, not an object with fields. Name other files.")
    return _whole(record) if b"\\u" in line else record


def _whole(value: Any) -> Any:
    """Return a value of JSON with U+FFFD for each half of a surrogate pair, which JSON can escape and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {key: _whole(item) for key, item in value.items()} if isinstance(value, dict) else value
