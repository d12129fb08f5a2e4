"""Local files that match a pattern, as in a shell.

Links are followed, wildcards skip hidden names, and a part of the pattern that exists matches itself, even with
wildcard characters. The standard library's glob would follow circular links forty times, and skip unreadable folders
and broken links without an error.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

_Identity = tuple[int, int]


class Matches(NamedTuple):
    """The folder before the first wildcard, and the files that match, sorted."""

    folder: str
    paths: list[str]


def matching(pattern: str) -> Matches:
    """Return the files that match an absolute pattern.

    Raises:
      OSError: a folder cannot be read, or a match is a broken link.
    """
    folder, parts = "/", [part for part in pattern.split("/") if part] or ["."]
    while len(parts) > 1 and _is_literal(folder, parts[0]):
        folder = os.path.join(folder, parts.pop(0))
    return Matches(folder, sorted(set(_at(folder, parts))))


def _at(path: str, rest: list[str]) -> Iterator[str]:
    """Yield the path if it is a file and `rest` is empty, or else the files below it that match `rest`."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as e:
        if os.path.islink(path):
            raise FileNotFoundError(errno.ENOENT, "A link to a file that does not exist", path) from e
        return
    if rest and stat.S_ISDIR(mode):
        yield from _below(path, rest)
    elif not rest and stat.S_ISREG(mode):
        yield path


def _below(folder: str, parts: list[str]) -> Iterator[str]:
    part, *rest = parts
    if _is_literal(folder, part):
        yield from _at(os.path.join(folder, part), rest)
    elif part == "**":
        for visited in _folders(folder, frozenset()):
            yield from _below(visited, rest or ["*"])
    else:
        for name in os.listdir(folder):
            if fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
                yield from _at(os.path.join(folder, name), rest)


def _folders(folder: str, above: frozenset[_Identity]) -> Iterator[str]:
    """Yield a folder and all visible folders below it. Links are followed, but not in circles."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    yield folder
    with os.scandir(folder) as entries:
        inner = [entry.path for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    for path in inner:
        yield from _folders(path, above | {identity})


def _is_folder(entry: os.DirEntry) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_literal(folder: str, part: str) -> bool:
    return not re.search(r"[*?\[]", part) or os.path.lexists(os.path.join(folder, part))
