"""The source code and documentation of Python's standard library: real text that is already on every machine.

The folder that `sysconfig` names as the standard library is read: modules, `pydoc_data` (the language reference as
shipped) and the plain text files beside them. This is about 11 MB in CPython 3.12. Left out are installed packages,
test suites, caches, and the variables of the build (`_sysconfigdata*`), which are paths of whoever compiled Python.
"""

import dataclasses
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from jaxtrain.data.sources.base import Document, Source
from jaxtrain.data.sources.digests import local_digests

_SUFFIXES = {".py", ".txt", ".rst"}
_LEFT_OUT_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StandardLibrary(Source):
    """One document for each file, in the order of their relative paths. Files that are not UTF-8 are skipped."""

    paper: ClassVar[str] = "docs.python.org/3/library"

    def documents(self) -> Iterator[Document]:
        root = _root()
        for key in _keys(root):
            try:
                yield Document(key, (root / key).read_bytes().decode())
            except UnicodeDecodeError:
                continue

    def expected_documents(self) -> int:
        return len(_keys(_root()))

    def fingerprint(self) -> str:
        root = _root()
        keys = _keys(root)
        digests = local_digests(str(root), [str(root / key) for key in keys])
        return "\n".join(f"{key} {digest}" for key, digest in zip(keys, digests, strict=True))


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _keys(root: Path) -> list[str]:
    keys = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT_FOLDERS]
        keys += [(Path(folder) / name).relative_to(root).as_posix() for name in names if _wanted(name)]
    if not keys:
        raise ValueError(
            f"source=StandardLibrary() found no sources below stdlib={str(root)!r}: this Python keeps them elsewhere "
            "or zipped. Use a Python that has them as files, or TextFiles(glob=...)."
        )
    return sorted(keys)


def _wanted(name: str) -> bool:
    return os.path.splitext(name)[1] in _SUFFIXES and not name.startswith("_sysconfigdata")
