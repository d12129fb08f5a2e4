"""Opening the files of a model folder: errors inside a file name it, and links out of the folder are refused."""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

AGAIN = "download or export it again"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # JSON's escape of half of a surrogate pair


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise a ValueError or OSError that names the file, for errors of its content or of the system in the `with`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(file)) from error
        raise
    except (ValueError, RecursionError, OverflowError, MemoryError, SafetensorError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(said if said.startswith(str(file)) else f"{file}: {said}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: the file is not JSON, or has a duplicate key, a number that no float holds or half of a surrogate
            pair.
    """
    with reading(file):
        text = file.read_bytes().decode()
        try:
            content = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_constant=_float)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON ({error}): {AGAIN}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} is not a JSON object: {AGAIN}")
        if SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # raises ValueError for half of a pair
        return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key!r} stands twice in one object: leave one of them")
            seen.add(key)
    return found


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number that a float can hold")
    return value


def own_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file in a model folder, or None where there is no such file.

    In the Hugging Face cache the files of models/snapshots/REVISION are links into models/blobs. Any other link out of
    the folder is refused. It could lead to any file on this machine, which would be copied together with the model.

    Raises:
        ValueError: the file is a broken link, or a link out of the folder and its cache.
    """
    file, home = folder / name, folder.resolve()
    if not file.exists():
        if file.is_symlink():
            raise ValueError(f"{file} is a link to nothing: {AGAIN}")
        return None
    at = file.resolve()
    if home not in at.parents and not (home.parent.name == "snapshots" and at.parent == home.parent.parent / "blobs"):
        raise ValueError(f"{file} is a link out of its folder, to {at}: put the file itself there if it is wanted")
    return file
