"""Files matched by a glob, on any file system that fsspec knows (local, s3, gs, https, memory, ...)."""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

# What stores call the version of a file; the first one present stands for its time of change.
_VERSION_FIELDS = ("mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "created")


class File(NamedTuple):
    """One matched file. `key` is its path below the fixed part of the glob, so moving the folder keeps every key."""

    filesystem: fsspec.AbstractFileSystem
    path: str
    key: str
    size_bytes: int
    version: str

    def open(self) -> BinaryIO:
        """Open for reading, decompressing .gz, .bz2, .xz and what else fsspec infers from the name."""
        return self.filesystem.open(self.path, "rb", compression="infer")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)


def matched(glob: str) -> list[File]:
    """Return the files that match, sorted by path.

    Raises:
      ValueError: nothing matches, or the protocol of the URL is not installed.
    """
    try:
        filesystem, pattern = fsspec.url_to_fs(glob)
        found = filesystem.glob(pattern, detail=True)
    except (ImportError, ValueError) as e:
        raise ValueError(f"{glob=} cannot be listed: {e}. Install that file system or give a local path.") from e
    root = _fixed_folder(pattern)
    files = [
        File(filesystem, path, path.removeprefix(root).lstrip("/"), info["size"] or 0, _version(info))
        for path, info in sorted(found.items())
        if info["type"] == "file"
    ]
    if not files:
        raise ValueError(f"{glob=} matches no file. Correct it; everything below a folder is 'folder/**'.")
    return files


def fingerprint(files: list[File]) -> str:
    return "\n".join(f"{file.key} {file.size_bytes} {file.version}" for file in files)


def lines(file: File) -> Iterator[bytes]:
    with file.open() as stream:
        yield from stream


def _fixed_folder(pattern: str) -> str:
    """Return the folder part before the first wildcard: '/data/a*/b.txt' -> '/data'."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed.rpartition("/")[0]


def _version(info: dict) -> str:
    return next((str(info[field]) for field in _VERSION_FIELDS if info.get(field) is not None), "")
