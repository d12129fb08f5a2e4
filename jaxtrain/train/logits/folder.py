"""The folder of a teacher's logits: of every row that a run takes, the likeliest words and their logits.

    meta.json       a fingerprint, and of each stream its rows and the size and CRC-32 of its two files
    0-words.bin     the words of the first stream, uint16 or uint32, [rows, length, k], the likeliest first
    0-logits.bin    their logits, float32

A row is known by its stream (train/feed.py) and its number in that stream. The name of a stream holds the sequence
length, the tokenizer, the packing, the seed and a digest of all tokens, so the logits of other rows are never taken for
those of a run. A token takes 6 k bytes, or 8 k where the vocabulary has more than 65,536 words.
"""

import functools
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.surgery.whole_folder import whole_folder

META = "meta.json"
_FORMAT = 2
type Answers = tuple[np.ndarray, np.ndarray]  # words and logits of rows, [rows, length, k]


class StoredRows:
    """The words and the logits of a stream's rows."""

    def __init__(self, words: np.ndarray, logits: np.ndarray):
        self._words, self._logits = words, logits

    def __getitem__(self, row: int) -> Mapping[str, np.ndarray]:
        return {"words": self._words[row].astype(np.int32), "logits": self._logits[row]}


class Stream(NamedTuple):
    """How much of a stream is stored, and the checksums of its files."""

    rows: int
    length: int
    files: dict[str, list[int]]


class LogitsFolder(NamedTuple):
    """What meta.json says. `fingerprint` determines the teacher's arrays, `top_k` and the names of the streams."""

    path: Path
    fingerprint: str
    top_k: int
    vocab_size: int
    command: str  # that wrote it
    streams: dict[str, Stream]

    @classmethod
    def read(cls, path: Path) -> "LogitsFolder":
        """Read meta.json.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        write = f"jaxtrain logits CONFIG {path}, with a configuration that has the teacher itself"
        try:
            meta = json.loads((path / META).read_bytes())
            streams = {name: Stream(**stream) for name, stream in meta.pop("streams").items()}
            if meta.pop("format") != _FORMAT:
                raise ValueError(f"path={str(path)!r}: its logits have the format of another version; write them anew")
            return cls(path, **meta, streams=streams)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"path={str(path)!r}: there are no logits; write them: {write}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path / META} is damaged; remove {path} and write it anew: {write}") from error

    def rows(self, stream: str, rows: int) -> StoredRows:
        """Return the stored rows of a stream.

        Raises:
            ValueError: the first `rows` rows are not all there, or a file is not what was written.
        """
        anew = f"write them into another folder, or remove this one first: {self.command}"
        if (stored := self.streams.get(stream)) is None:
            there = "; ".join(self.streams)
            raise ValueError(
                f"path={str(self.path)!r}: its logits are of other rows than the run takes: of {there}, and not of "
                f"{stream}; {anew}"
            )
        if rows > stored.rows:
            raise ValueError(
                f"path={str(self.path)!r}: it has the logits of {stored.rows} rows of this data, and the run takes "
                f"{rows} from its first step to its last; with phases of as many (steps times batch_size), {anew}"
            )
        for name, digest in stored.files.items():
            if not (self.path / name).is_file() or _checksum(self.path / name) != digest:
                raise ValueError(f"{self.path / name} is not the file that was written; {anew}")
        shape = stored.rows, stored.length, self.top_k
        files = zip(stored.files, (_words_dtype(self.vocab_size), np.dtype(np.float32)), strict=True)
        words, logits = (np.memmap(self.path / name, dtype, "r", shape=shape).view(np.ndarray) for name, dtype in files)
        return StoredRows(words, logits)


def write_folder(
    path: Path,
    streams: Iterable[tuple[str, Iterator[Answers]]],
    *,
    teacher: str,
    top_k: int,
    vocab_size: int,
    command: str,
) -> LogitsFolder:
    """Write a new folder, whole or not at all. `teacher` is the fingerprint of its arrays.

    Raises:
        ValueError: the folder exists.
        OSError: it cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists: name a new folder, or remove it first")
    stored: dict[str, Stream] = {}
    try:
        with whole_folder(path) as whole:
            for number, (stream, answers) in enumerate(streams):
                names = f"{number}-words.bin", f"{number}-logits.bin"
                rows, length = _write_rows([whole / name for name in names], answers, _words_dtype(vocab_size))
                stored[stream] = Stream(rows, length, {name: _checksum(whole / name) for name in names})
            meta: dict[str, Any] = {
                "fingerprint": _digest([_FORMAT, teacher, top_k, sorted(stored)]),
                "top_k": top_k,
                "vocab_size": vocab_size,
                "command": command,
            }
            written = {"format": _FORMAT, **meta, "streams": {name: s._asdict() for name, s in stored.items()}}
            (whole / META).write_text(json.dumps(written, indent=1))
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error  # such as a full disk
    return LogitsFolder(path, **meta, streams=stored)


def _write_rows(files: list[Path], answers: Iterator[Answers], dtype: np.dtype) -> tuple[int, int]:
    """Write the rows of a stream, and return their number and length."""
    rows = length = 0
    with files[0].open("wb") as of_words, files[1].open("wb") as of_logits:
        for words, logits in answers:
            of_words.write(np.ascontiguousarray(words, dtype))
            of_logits.write(np.ascontiguousarray(logits, np.float32))
            rows, length = rows + len(words), words.shape[1]
    return rows, length


def _checksum(path: Path) -> list[int]:
    """Return the size of a file and the CRC-32 of all of it, which is read once as long as it does not change."""
    status = path.stat()
    return [status.st_size, _crc(path.absolute(), (status.st_ino, status.st_mtime_ns, status.st_ctime_ns))]


@functools.lru_cache(maxsize=256)
def _crc(path: Path, version: tuple[int, ...]) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _words_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _digest(parts: list) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
