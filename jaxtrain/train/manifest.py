"""The manifest of a checkpoint: the size and CRC-32 of every file in it, written last.

A checkpoint without one was never finished; one that does not match it is damaged.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxtrain.train.folder import write_whole

MANIFEST = "manifest.json"
_READERS = 8


def write_manifest(folder: Path) -> None:
    """Declare a checkpoint finished, with the files it has now."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST)]
    found = {str(path.relative_to(folder)): path for path in sorted(files)}
    with ThreadPoolExecutor(_READERS) as pool:
        digests = dict(zip(found, pool.map(_digest, found.values()), strict=True))
    write_whole(folder / MANIFEST, json.dumps(digests, indent=0))


def is_finished(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def fault(folder: Path, *, part: int = 0, parts: int = 1) -> str | None:
    """Say what is wrong with a checkpoint's files, None if nothing is; read only the `part`-th of `parts` shares."""
    if not is_finished(folder):
        return "it was never finished"
    try:
        expected = list(json.loads((folder / MANIFEST).read_text()).items())[part::parts]
    except (OSError, ValueError, AttributeError):
        return f"its file {MANIFEST} is damaged"
    with ThreadPoolExecutor(_READERS) as pool:
        faults = pool.map(lambda item: _file_fault(folder, *item), expected)
        return next(filter(None, faults), None)


def _file_fault(folder: Path, name: str, digest: list[int]) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"its file {name} is missing"
    try:
        damaged = path.stat().st_size != digest[0] or _digest(path) != digest
    except OSError as error:
        return f"its file {name} cannot be read ({error.strerror})"
    return f"its file {name} is damaged" if damaged else None


def _digest(path: Path) -> list[int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
