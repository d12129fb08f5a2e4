"""Compressed files as the bytes they hold, all of them or an error.

The readers of the standard library for .bz2 and .xz stop in silence at what is not another stream, so one damaged
byte would cut a file of many streams (lbzip2, pixz) short; here that is an error. Files cut off exactly between two
streams are whole to every reader.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

_BYTES_A_READ = 2**18


@contextlib.contextmanager
def decompressed(raw: BinaryIO, path: str) -> Iterator[BinaryIO]:
    """Open what a file holds, by its suffix: .gz, .bz2, .xz, .lzma, .zst, or as it is.

    Raises:
      EOFError: it has the suffix of a compressed file, and no bytes.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _READERS:
        yield raw
        return
    buffered = io.BufferedReader(raw)
    if not buffered.peek(1):
        raise EOFError("an empty file is not a compressed one")
    with _READERS[suffix](buffered) as stream:
        yield stream


class _Streams(io.RawIOBase):
    """Compressed streams one after another, each of which must be whole; zeros may pad them (.xz)."""

    def __init__(self, raw: BinaryIO, make: Callable):
        self._raw, self._make = raw, make
        self._decompressor = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while True:
            compressed = b""
            if self._decompressor.eof:
                compressed = self._rest()
                if not compressed:
                    return 0
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                compressed = self._raw.read(_BYTES_A_READ)
                if not compressed:
                    raise EOFError("it ends in the middle of a compressed stream")
            content = self._decompressor.decompress(compressed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _rest(self) -> bytes:
        """Return some bytes that follow the stream that has ended, without the zeros between streams."""
        compressed = self._decompressor.unused_data.lstrip(b"\0")
        while not compressed:
            read = self._raw.read(_BYTES_A_READ)
            if not read:
                break
            compressed = read.lstrip(b"\0")
        return compressed


def _zstandard(raw: BinaryIO) -> BinaryIO:
    import pyarrow  # half a second that other files need not wait for

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


_READERS: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": gzip.open,
    ".bz2": lambda raw: io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor)),
    ".xz": lambda raw: io.BufferedReader(_Streams(raw, lzma.LZMADecompressor)),
    ".lzma": lambda raw: io.BufferedReader(_Streams(raw, lzma.LZMADecompressor)),
    ".zst": _zstandard,
}
