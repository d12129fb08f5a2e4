"""Data files of every source, plain and compressed.

Silently wrong: other documents than were written, where the format has checksums (.gz, .bz2, .xz, Parquet with
checksums of pages, ArrayRecord); elsewhere other documents than the bytes say, read by Python itself. A .zst file, as
pyarrow writes it, has no checksum: it says what it holds when it is decompressed whole.
"""

import bz2
import functools
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from array_record.python import array_record_module

from fuzzed import mutations
from fuzzed.case import Case
from jaxtrain.data.sources import ArrayRecord, JsonLines, Parquet, Source, TextFiles

TEXTS = ["plain words", "né ß 漢字 \U0001f600", "two\nlines\r\n\ttab", '"quotes" and \\', "x" * 900, "last \u2028 one"]
TEXTS += [f"document {number} of many, {number**3}" for number in range(20)]
TEXT = "\n".join(TEXTS)
LINES = "".join(json.dumps({"text": text}, ensure_ascii=index % 2 > 0) + "\n" for index, text in enumerate(TEXTS))
RAW = (b"\x00", b"\xed\xa0\x80", b"\xff", b"{", b"[" * 3000, b'{"text": null}\n', b'{"text": "\\ud800"}\n', b"nan\n")
RAW += (b'{"text": ' + b"[" * 100_000 + b"\n", b'{"text": ' + b"9" * 5000 + b"}\n", b'{"txt": "a"}\n', b"\xef\xbb\xbf")
RAW += (b"\r", b"\n\n", b'{"text": "a"}{"text": "b"}\n', b'["text"]\n', b'{"text": "a", "text": 1}\n', b'"text"\n')


class Format(NamedTuple):
    """How documents are written to a file, how it is read, and the documents that its bytes say it holds."""

    write: Callable[[Path], object]
    source: Callable[[str], Source]
    says: Callable[[bytes], list[str]]


def files(random: Random, folder: Path) -> Iterator[Case]:
    valid = {}
    for ending, form in FORMATS.items():
        form.write(folder / f"valid{ending}")
        valid[ending] = (folder / f"valid{ending}").read_bytes()
        yield _file(folder / f"data{ending}", "valid", valid[ending], valid=True)
    while True:
        ending = random.choice(list(FORMATS))
        damage = random.choice((mutations.data, _inserted))
        yield _file(folder / f"data{ending}", *damage(random, valid[ending]))


def _file(path: Path, what: str, content: bytes, *, valid: bool = False) -> Case:
    form = FORMATS[path.name.removeprefix("data")]

    def attempt() -> list[str]:
        path.write_bytes(content)
        return [document.text for document in form.source(str(path)).documents()]

    def fault(texts: list[str]) -> str | None:
        try:
            meant = form.says(content)
        except (ValueError, OSError) as error:
            return f"{len(texts)} documents of what Python does not read: {error}"
        return None if texts == meant else f"{len(texts)} documents, and not the {len(meant)} that it holds"

    return Case("data file", f"{path.name}, {what}", attempt, fault, (path.name,), valid)


def _inserted(random: Random, valid: bytes) -> mutations.Damaged[bytes]:
    at = random.choice([0, len(valid), random.randrange(len(valid)), valid.find(b"\n") + 1])
    raw = random.choice(RAW)
    return mutations.Damaged(f"{raw[:20]!r} ({len(raw)} bytes) at {at}", valid[:at] + raw + valid[at:])


def _text(content: bytes) -> list[str]:
    return [content.decode("utf-8-sig")]


def _lines(content: bytes) -> list[str]:
    """Nulls are no documents, and half of a surrogate pair, which JSON can escape, is U+FFFD."""
    texts = [json.loads(line.decode("utf-8-sig"))["text"] for line in content.split(b"\n") if line.strip()]
    return [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts if text is not None]


def _parquet(path: Path) -> None:
    table = pyarrow.table({"text": TEXTS, "number": range(len(TEXTS))})
    pyarrow.parquet.write_table(table, path, row_group_size=7, write_page_checksum=True)


def _array_record(path: Path) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:2")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _source[T: Source](kind: type[T]) -> Callable[[str], T]:
    return lambda path: kind(glob=path)


ZSTD = pyarrow.Codec("zstd")
T, L = TEXT.encode(), LINES.encode()
FORMATS = {
    ".txt": Format(_written(T), _source(TextFiles), _text),
    ".jsonl": Format(_written(L), _source(JsonLines), _lines),
    ".txt.zst": Format(
        _written(ZSTD.compress(T, asbytes=True)),
        _source(TextFiles),
        lambda content: _text(ZSTD.decompress(content, len(T), asbytes=True)),
    ),
    ".jsonl.zst": Format(
        _written(ZSTD.compress(L, asbytes=True)),
        _source(JsonLines),
        lambda content: _lines(ZSTD.decompress(content, len(L), asbytes=True)),
    ),
    ".parquet": Format(_parquet, _source(Parquet), lambda _: TEXTS),
    ".array_record": Format(_array_record, _source(ArrayRecord), lambda _: TEXTS),
}
for ending, compress in (
    ("gz", functools.partial(gzip.compress, mtime=0)),
    ("bz2", bz2.compress),
    ("xz", lzma.compress),
):
    FORMATS[f".txt.{ending}"] = Format(_written(compress(T)), _source(TextFiles), lambda _: [TEXT])
    FORMATS[f".jsonl.{ending}"] = Format(_written(compress(L)), _source(JsonLines), lambda _: TEXTS)
