"""How the files of a model folder are opened: what goes wrong inside one names it, and links do not lead out of it."""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

AGAIN = "download or export it again"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape in JSON


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise one ValueError, or the system's OSError, that names the file where its content stops the `with`."""
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
    """Return the object in a JSON file. Raises ValueError for a key that stands twice or a number that is none."""
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
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{twice!r} stands twice in one object: leave one of them")
    return found


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number that a float can hold")
    return value


def own_file(folder: Path, name: str) -> Path | None:
    """Return a file of a model folder, None where there is none.

    The Hugging Face cache keeps models/snapshots/REVISION as links into models/blobs; any other link out of the folder
    could lead anywhere on this machine, and what it leads to would be copied along with the model.

    Raises:
        ValueError: it is a link to nothing, or out of the folder and its cache.
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
