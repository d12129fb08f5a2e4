"""Digests of the bytes of local files, remembered so that a file is not read again while it stays as it is.

What is remembered is bound to device, inode, size, time of writing and time of change. The last cannot be set, so that
an edit which restores size and time shows. As in git's index, a file that changed in the last seconds is not
remembered: it may change again within the same tick of the clock.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from jaxtrain.data.cache import cache_folder
from jaxtrain.data.sources.reading import reading

_TICK_NS = 2 * 10**9  # of the coarsest file system in use

_Entry = list[str | int]  # the digest, then the signature that it holds for


def digest(stream: BinaryIO) -> str:
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def local_digests(name: str, paths: Sequence[str]) -> list[str]:
    """Return a digest of each file's bytes. What is remembered is kept under `name`, for one set of files."""
    memory = cache_folder() / "digests" / f"{hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()}.json"
    known, found = _load(memory), {}
    for path in paths:
        entry = known.get(path, [])
        found[path] = entry if entry[1:] == _signature(os.stat(path)) else _read(path)
    if found != known:
        _save(found, memory)
    return [entry[0] for entry in found.values()]


def _read(path: str) -> _Entry:
    """Return a file's entry: without a signature, so for this time only, where the file may change unseen."""
    began = time.time_ns()
    with reading(path), open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        entry = [digest(stream), *_signature(status)]
        is_settled = entry[1:] == _signature(os.fstat(stream.fileno())) and began - status.st_ctime_ns > _TICK_NS
    return entry if is_settled else entry[:1]


def _signature(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _load(memory: Path) -> dict[str, _Entry]:
    try:
        known = json.loads(memory.read_bytes())
        return known if isinstance(known, dict) and all(isinstance(entry, list) for entry in known.values()) else {}
    except (OSError, ValueError):
        return {}


def _save(found: dict[str, _Entry], memory: Path) -> None:
    """Write the memory whole or not at all; without it files are only read again."""
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=memory.parent, prefix=".writing-") as folder:
            whole = Path(folder) / memory.name
            whole.write_text(json.dumps(found))
            os.replace(whole, memory)
