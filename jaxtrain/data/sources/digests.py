"""Digests of the bytes of local files, cached so that an unchanged file is not read again.

A cached digest holds for one signature of the file: device, inode, size, mtime and ctime. The ctime cannot be set, so
an edit that restores size and mtime is detected. As in git's index, a file that changed in the last seconds is not
cached: it may change again within the same tick of the clock.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtrain.data.cache import cache_folder
from jaxtrain.data.sources.reading import reading

_TICK_NS = 2 * 10**9  # the resolution of times in the coarsest file system in use


class _Entry(NamedTuple):
    """A file's digest, and the signature for which it holds; [] for a file that may change without a new signature."""

    digest: str
    signature: list[int]


def digest(stream: io.BufferedIOBase) -> str:
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def local_digests(name: str, paths: Sequence[str]) -> list[str]:
    """Return a digest of each file's bytes. `name` identifies the set of files, which has a cache file of its own."""
    memory = cache_folder() / "digests" / f"{hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()}.json"
    known, found = _load(memory), {}
    for path in paths:
        entry = known.get(path)
        found[path] = entry if entry and entry.signature == _signature(os.stat(path)) else _read(path)
    if found != known:
        _save(found, memory)
    return [entry.digest for entry in found.values()]


def _read(path: str) -> _Entry:
    """Read a file and return its entry."""
    began = time.time_ns()
    with reading(path), open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        entry = _Entry(digest(stream), _signature(status))
        is_unchanged = entry.signature == _signature(os.fstat(stream.fileno()))
    return entry if is_unchanged and began - status.st_ctime_ns > _TICK_NS else entry._replace(signature=[])


def _signature(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _load(memory: Path) -> dict[str, _Entry]:
    """Return the cached entries, or {} where the cache file is missing or damaged."""
    try:
        known = json.loads(memory.read_bytes())
        return {path: _Entry(str(digest), signature) for path, (digest, *signature) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save(found: dict[str, _Entry], memory: Path) -> None:
    """Write the cache file whole or not at all. Ignore errors: without it files are only read again."""
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=memory.parent, prefix=".writing-") as folder:
            whole = Path(folder) / memory.name
            whole.write_text(json.dumps({path: [entry.digest, *entry.signature] for path, entry in found.items()}))
            os.replace(whole, memory)
