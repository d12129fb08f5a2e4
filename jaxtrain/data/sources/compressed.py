"""Reading compressed files: all their content, or an error.

The readers of the standard library for .bz2 and .xz stop without an error at bytes that do not begin another stream. So
one damaged byte would cut a file of many streams (lbzip2, pixz) short; here it is an error. No reader can detect a file
that is cut off exactly between two streams.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
from collections.abc import Buffer, Callable, Iterator

_BYTES_A_READ = 2**18

type Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


@contextlib.contextmanager
def decompressed(raw: io.BufferedIOBase, path: str) -> Iterator[io.BufferedIOBase]:
    """Yield a stream of the content of a file.

    It is decompressed if the file has the suffix .gz, .bz2, .xz, .lzma or .zst.

    Raises:
      EOFError: the file has one of these suffixes and is empty.
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
    """Compressed streams one after another, each of which must be complete. Zeros may pad them (.xz)."""

    def __init__(self, raw: io.BufferedIOBase, make: Callable[[], Decompressor]):
        self._raw, self._make = raw, make
        self._decompressor = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        space = memoryview(buffer).cast("B")
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
            content = self._decompressor.decompress(compressed, len(space))
            if content:
                space[: len(content)] = content
                return len(content)

    def _rest(self) -> bytes:
        """Return some bytes after the stream that has ended, without the zeros between streams. b"" at the end."""
        compressed = self._decompressor.unused_data.lstrip(b"\0")
        while not compressed:
            read = self._raw.read(_BYTES_A_READ)
            if not read:
                break
            compressed = read.lstrip(b"\0")
        return compressed


def _zstandard(raw: io.BufferedIOBase) -> io.BufferedIOBase:
    import pyarrow  # imported here, because it takes half a second that other files do not need

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))


_READERS: dict[str, Callable[[io.BufferedIOBase], io.BufferedIOBase]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".bz2": lambda raw: io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor)),
    ".xz": lambda raw: io.BufferedReader(_Streams(raw, lzma.LZMADecompressor)),
    ".lzma": lambda raw: io.BufferedReader(_Streams(raw, lzma.LZMADecompressor)),
    ".zst": _zstandard,
}
