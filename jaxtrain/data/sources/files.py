"""Files that match a glob, on any file system that fsspec knows (local, s3, gs, https, memory, ...)."""

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from jaxtrain.data.sources.compressed import decompressed
from jaxtrain.data.sources.digests import digest, local_digests
from jaxtrain.data.sources.local_files import matching
from jaxtrain.data.sources.reading import names_its_file, one_line, reading

# The fields in which remote stores give a checksum of a file. A time of change is none: a changed file may keep it.
_CHECKSUM_FIELDS = ("ETag", "etag", "e_tag", "md5Hash", "md5", "Content-MD5", "content_hash", "blob_id", "sha")

_log = logging.getLogger(__name__)


class File(NamedTuple):
    """One matched file. `key` is its path below the fixed part of the glob, so moving the folder keeps every key."""

    filesystem: fsspec.AbstractFileSystem
    path: str
    key: str
    checksum: str | None = None  # from a remote store that has one

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedIOBase]:
        """Open the file for reading, decompressed if it has the suffix of a compressed file."""
        with self.open_as_it_is() as raw, decompressed(raw, self.path) as stream:
            yield stream

    def open_as_it_is(self) -> io.BufferedIOBase:
        return self.filesystem.open(self.path, "rb")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)


def matched(glob: str) -> list[File]:
    """Return the files that match, sorted by path. A path that exists matches itself, even with wildcard characters.

    Raises:
      ValueError: nothing matches, or the files cannot be listed, for example because the file system of a URL is not
        installed.
      OSError: a local folder cannot be read, or a match is a broken link.
    """
    try:
        filesystem, pattern = _located(glob)
        files = _local(filesystem, pattern) if isinstance(filesystem, LocalFileSystem) else _remote(filesystem, pattern)
    except Exception as e:  # file systems may raise any exception
        if names_its_file(e):
            raise
        raise ValueError(
            f"{glob=} cannot be listed: {one_line(e)}. Correct it, install that file system, or give a local path."
        ) from e
    if not files:
        raise ValueError(f"{glob=} matches no file. Correct it; everything below a folder is 'folder/**'.")
    return files


def fingerprint(glob: str) -> str:
    """Return a text that determines the names and bytes of the files that match.

    It has a digest of the bytes of a local file, and of a remote file whose store has no checksum. For other remote
    files it has the checksum with the URL: many ETags are made of size and time, and say nothing at another URL.
    """
    files = matched(glob)
    if files[0].is_local:
        digests = local_digests(os.path.abspath(glob), [file.path for file in files])
    else:
        digests = [file.checksum or _read(file) for file in files]
    return "\n".join(f"{file.key} {digest}" for file, digest in zip(files, digests, strict=True))


def _located(glob: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a glob, and the absolute pattern in it."""
    if "://" in glob and not os.path.lexists(glob):
        return fsspec.url_to_fs(glob)
    path = glob if os.path.lexists(glob) else os.path.expanduser(glob)
    return LocalFileSystem(), os.path.join(os.getcwd(), path)


def _local(filesystem: LocalFileSystem, pattern: str) -> list[File]:
    folder, paths = matching(pattern)
    return [File(filesystem, path, path.removeprefix(folder).lstrip("/")) for path in paths]


def _remote(filesystem: fsspec.AbstractFileSystem, pattern: str) -> list[File]:
    """Return the remote files that match, by the rules for local files: see local_files.py."""
    if filesystem.isfile(pattern):
        fixed, found = pattern, {pattern: filesystem.info(pattern)}
    else:
        fixed, found = re.split(r"[*?\[]", pattern, maxsplit=1)[0], filesystem.glob(pattern, detail=True)
    folder = fixed.rpartition("/")[0]
    shows_hidden = "/." in pattern.removeprefix(folder)
    return [
        File(filesystem, path, path.removeprefix(folder).lstrip("/"), _checksum(filesystem, path, info))
        for path, info in sorted(found.items())
        if info["type"] != "directory" and (shows_hidden or "/." not in path.removeprefix(folder))
    ]


def _checksum(filesystem: fsspec.AbstractFileSystem, path: str, info: dict) -> str | None:
    """Return a remote file's URL and checksum, or None where its store has no checksum or a weak one (RFC 9110)."""
    values = (str(info[field]) for field in _CHECKSUM_FIELDS if info.get(field))
    strong = next((value for value in values if not value.startswith("W/")), None)
    return strong and f"{filesystem.unstrip_protocol(path)} {strong}"


def _read(file: File) -> str:
    _log.info("%s has no ETag or checksum: it is read, each time, to know its text", file.path)
    with reading(file.path), file.open_as_it_is() as stream:
        return digest(stream)
