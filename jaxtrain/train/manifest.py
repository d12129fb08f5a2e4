"""The manifest of a checkpoint: its name, its layout, and the size and CRC-32 of every file in it; written last.

A checkpoint that does not match it is damaged: a file is missing, changed or one too many, or the folder was renamed.
The files that it lists are flushed to the disk before it is written.

The layout is the version of the trees in a checkpoint. A manifest of layout 1, which had neither named stacks nor
linears, lists the files alone.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeGuard

from jaxtrain.surgery.layouts import LAYOUT
from jaxtrain.train.folder import flush_folder, write_whole

MANIFEST = "manifest.json"
_READERS = 8
Digest = list[int]  # size in bytes, CRC-32


class Manifest(NamedTuple):
    """What a manifest says.

    `frozen` is the name of the frozen tree that the checkpoint refers to, if any. `measured` are the numbers that hooks
    measured at its step, such as the validation loss; those of earlier versions have none. `ended` is why a hook ended
    the run at this step; None if none did. `stream` names what the phase read; None in those of earlier versions.
    """

    layout: int
    frozen: str | None
    files: dict[str, Digest]
    measured: dict[str, float]
    ended: str | None
    stream: str | None


def write_manifest(
    folder: Path,
    *,
    frozen: str | None = None,
    measured: Mapping[str, float] = MappingProxyType({}),
    ended: str | None = None,
    stream: str | None = None,
) -> None:
    """Write the manifest of a finished checkpoint. The folders `12` and `12.saving` both have the name 12 in it.

    Numbers that are not finite are left out.
    """
    files = _files(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        digests = dict(zip(files, pool.map(_flushed_digest, files.values()), strict=True))
    for inner, _, _ in folder.walk():
        flush_folder(inner)
    finite = {name: float(value) for name, value in measured.items() if math.isfinite(value)}
    name = folder.name.split(".")[0]
    manifest = {"checkpoint": name, "layout": LAYOUT, "frozen": frozen, "measured": finite, "ended": ended}
    manifest |= {"stream": stream, "files": digests}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=0))


def is_finished(folder: Path) -> bool:
    """Tell whether a checkpoint has a manifest with its name. Its files are not compared with it."""
    try:
        return bool(read_manifest(folder).files)
    except ValueError:
        return False


def fault(folder: Path, *, part: int = 0, parts: int = 1) -> str | None:
    """Return what is wrong with a checkpoint's files, None if nothing. Read only share `part` of `parts` of them."""
    try:
        listed, there = read_manifest(folder).files, _files(folder)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"its files cannot be listed ({error.strerror})"
    if odd := sorted(listed.keys() ^ there.keys()):
        return f"its file {odd[0]} " + ("is missing" if odd[0] in listed else f"is not in {MANIFEST}")
    with ThreadPoolExecutor(_READERS) as pool:
        faults = pool.map(lambda item: _file_fault(folder, *item), list(listed.items())[part::parts])
        return next(filter(None, faults), None)


def check_layout(folder: Path) -> None:
    """Raise ValueError if a later version wrote the checkpoint, in a layout that this one does not know."""
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return  # damaged: it has no layout
    if manifest.layout > LAYOUT:
        raise ValueError(
            f"checkpoint {folder} has layout {manifest.layout}, of a later version of jaxtrain than this one, which "
            f"reads layouts up to {LAYOUT}: use that version, or name another folder for the run"
        )


def read_manifest(folder: Path, *, renamed: bool = False) -> Manifest:
    """Return the manifest of a checkpoint. It must have the folder's name, unless the checkpoint was `renamed`.

    Raises:
        ValueError: the manifest is missing, damaged or of another checkpoint; with which of these.
    """
    damaged = f"its file {MANIFEST} is damaged"
    try:
        match json.loads((folder / MANIFEST).read_bytes()):
            case {
                "checkpoint": str(name),
                "layout": int(layout),
                "frozen": str() | None as frozen,
                "files": {**files},
                **others,
            } if _are_digests(files):
                if name != folder.name and not renamed:
                    raise ValueError(f"its {MANIFEST} is that of checkpoint {name}")
                measured, texts = _numbers(others.get("measured", {})), map(others.get, ("ended", "stream"))
                return Manifest(layout, frozen, files, measured, *map(_text, texts))
            case {**files} if _are_digests(files):
                return Manifest(1, None, files, {}, None, None)
    except FileNotFoundError:
        raise ValueError(f"its file {MANIFEST} is missing") from None
    except OSError as error:
        raise ValueError(f"its file {MANIFEST} cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(damaged) from error
    raise ValueError(damaged)


def _numbers(measured: object) -> dict[str, float]:
    if not isinstance(measured, dict) or not all(type(value) is float for value in measured.values()):
        raise ValueError(f"its file {MANIFEST} is damaged")
    return measured


def _text(text: object) -> str | None:
    if text is not None and not isinstance(text, str):
        raise ValueError(f"its file {MANIFEST} is damaged")
    return text


def _are_digests(files: dict) -> TypeGuard[dict[str, Digest]]:
    return bool(files) and all(isinstance(d, list) and list(map(type, d)) == [int, int] for d in files.values())


def _files(folder: Path) -> dict[str, Path]:
    """Return all files but the manifest, by their relative paths. Raises OSError if a folder cannot be listed."""

    def fail(error: OSError):
        raise error

    paths = [at / name for at, _, names in folder.walk(on_error=fail, follow_symlinks=True) for name in names]
    listed = (path for path in sorted(paths) if path.parent != folder or not path.name.startswith(MANIFEST))
    return {path.relative_to(folder).as_posix(): path for path in listed}


def _file_fault(folder: Path, name: str, digest: Digest) -> str | None:
    path = folder / name
    try:
        damaged = path.stat().st_size != digest[0] or _digest(path) != digest
    except OSError as error:
        return f"its file {name} cannot be read ({error.strerror})"
    return f"its file {name} is damaged" if damaged else None


def _flushed_digest(path: Path) -> Digest:
    return _digest(path, flush=True)


def _digest(path: Path, *, flush: bool = False) -> Digest:
    size = crc = 0
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
