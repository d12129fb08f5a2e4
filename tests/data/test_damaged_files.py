"""Damaged files, seeded: each is read right, or refused in one line that names it, and none is cut short in silence."""

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python import array_record_module
from messages import refused

from jaxtrain.data import ArrayRecord, JsonLines, Parquet, Source, TextFiles

TEXTS = [f"document {number} of some words, {'long ' * (number % 9)}" for number in range(120)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
HALVES = LINES[: len(LINES) // 2], LINES[len(LINES) // 2 :]
TRIALS = 24


def _zstandard(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)  # without a checksum


def _two(compress: Callable[[bytes], bytes]) -> bytes:
    return b"".join(map(compress, HALVES))


def _parquet(kind: pyarrow.DataType, **options) -> bytes:
    content = io.BytesIO()
    table = pyarrow.table({"text": pyarrow.array(TEXTS).cast(kind)})
    pyarrow.parquet.write_table(table, content, row_group_size=50, **options)
    return content.getvalue()


def _array_record(options: str, scratch: Path) -> bytes:
    writer = array_record_module.ArrayRecordWriter(str(scratch / "written"), options)
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()
    return (scratch / "written").read_bytes()


# Each with a checksum over all of its text, so that no damage is text of another kind.
CHECKED = {
    "gz": (JsonLines, "a.jsonl.gz", lambda _: _two(gzip.compress)),
    "bz2": (JsonLines, "a.jsonl.bz2", lambda _: _two(bz2.compress)),
    "xz": (JsonLines, "a.jsonl.xz", lambda _: _two(lzma.compress)),
    "text gz": (TextFiles, "a.txt.gz", lambda _: gzip.compress(LINES)),
    "parquet with checksums": (Parquet, "a.parquet", lambda _: _parquet(pyarrow.string(), write_page_checksum=True)),
    "array_record": (ArrayRecord, "a.array_record", lambda scratch: _array_record("group_size:1", scratch)),
    "array_record in groups": (ArrayRecord, "a.array_record", lambda scratch: _array_record("group_size:16", scratch)),
}
UNCHECKED = {
    "json": (JsonLines, "a.jsonl", lambda _: LINES),
    "text": (TextFiles, "a.txt", lambda _: LINES),
    "zst": (JsonLines, "a.jsonl.zst", lambda _: _two(_zstandard)),
    "lzma": (JsonLines, "a.jsonl.lzma", lambda _: lzma.compress(LINES, format=lzma.FORMAT_ALONE)),
    "parquet": (Parquet, "a.parquet", lambda _: _parquet(pyarrow.string_view(), compression="none")),
    "parquet of entries": (Parquet, "a.parquet", lambda _: _parquet(pyarrow.dictionary(pyarrow.int32(), "string"))),
}
WITHOUT_AN_END = {"json", "text"}


def _outcome(source: Source, path: Path) -> list[str] | None:
    """The texts, None where the file is refused in one line that names it. Anything else fails the test."""
    try:
        texts = [document.text for document in source.documents()]
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    assert "".join(texts).encode().decode() == "".join(texts)
    return texts


def _flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.choice([place for place, byte in enumerate(content) if byte])  # ArrayRecord is mostly zeros
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


@pytest.fixture(params=CHECKED | UNCHECKED)
def damaged(request, tmp_path):
    kind, name, make = (CHECKED | UNCHECKED)[request.param]
    path = tmp_path / name
    source, content = kind(glob=str(path)), make(tmp_path)
    path.write_bytes(content)
    whole = _outcome(source, path)
    assert whole == ([LINES.decode()] if kind is TextFiles else TEXTS)
    return request.param, source, path, content, whole


def test_a_flipped_bit_is_refused_or_changes_nothing_that_has_a_checksum(damaged):
    format, source, path, content, whole = damaged
    rng, refused = random.Random(0), 0
    for _ in range(TRIALS):
        path.write_bytes(_flipped(content, rng))
        texts = _outcome(source, path)
        refused += texts is None
        assert texts in (None, whole) or format in UNCHECKED
    assert refused or format == "text"


def test_a_file_that_is_cut_off_is_refused_where_its_format_has_an_end(damaged):
    format, source, path, content, whole = damaged
    rng = random.Random(1)
    for length in [0, 1, len(content) - 1, *(rng.randrange(len(content)) for _ in range(TRIALS))]:
        path.write_bytes(content[:length])
        texts = _outcome(source, path)
        assert texts is None or format in WITHOUT_AN_END
        assert texts is None or "".join(whole).startswith("".join(texts))


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", _zstandard)]
)
def test_what_follows_a_compressed_stream_is_another_one_or_an_error(suffix, compress, tmp_path):
    """The standard library's readers of .bz2 and .xz take it for the end: half of the lines, and no word."""
    path = tmp_path / f"a.jsonl.{suffix}"
    source = JsonLines(glob=str(path))
    path.write_bytes(_two(compress))
    assert _outcome(source, path) == TEXTS
    first, second = map(compress, HALVES)
    path.write_bytes(first + bytes([second[0] ^ 1]) + second[1:])
    assert _outcome(source, path) is None
    path.write_bytes(first + b"no stream")
    assert _outcome(source, path) is None


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_zeros_may_pad_compressed_streams(suffix, compress, tmp_path):
    (tmp_path / f"a.jsonl.{suffix}").write_bytes((b"\0" * 1024).join(map(compress, HALVES)) + b"\0" * 512)
    assert [document.text for document in JsonLines(glob=f"{tmp_path}/*").documents()] == TEXTS


def test_a_damaged_file_is_told_with_the_last_line_that_was_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(HALVES[0]) + gzip.compress(HALVES[1])[:5])
    lines = HALVES[0].count(b"\n")
    with refused(ValueError, path, f"line {lines}", "JSON lines", varies={"<gzip>": r"\(.*\)"}):
        list(JsonLines(glob=str(path)).documents())
