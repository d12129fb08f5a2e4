"""The files that a configuration names: fields annotated `FilePath` or `Glob` (jaxtrain/paths.py), wherever they stand.

In the config.gin of a run a path may begin with `{run}/`, the folder that the config.gin lies in. So are the run's own
copies named, whose names begin with a digest of what they hold (kept_files.py).
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAliasType, get_args, get_type_hints

from jaxtrain.cli.config_tree import Items, Leaf, Node, Tree, join
from jaxtrain.paths import FilePath
from jaxtrain.train.folder import FILES

HERE = "{run}/"
DIGITS = 16  # of the digest, in the name of a copy
_COPY = re.compile(rf"[0-9a-f]{{{DIGITS}}}-.+", re.DOTALL)


def marked(tree: Tree, mark: TypeAliasType, hint: object = None, at: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield the text of every field that is annotated with the mark, or the mark or None, and the path of its key."""
    match tree:
        case Leaf(value=str()) if mark in (hint, *get_args(hint)):
            yield at, tree
        case Items(children=children):
            for index, child in enumerate(children):
                yield from marked(child, mark, None, join(at, index))
        case Node(cls=cls, children=children):
            hints = get_type_hints(cls)
            for name, child in children.items():
                yield from marked(child, mark, hints[name], join(at, name))


def resolve(tree: Tree) -> None:
    """Replace `{run}` by the folder of the configuration file in which it stands."""
    for _, leaf in marked(tree, FilePath):
        if leaf.value.startswith(HERE):
            file, _, _ = leaf.origin.rpartition(":")
            leaf.value = str(Path(file).parent / leaf.value.removeprefix(HERE))


def check_copies(tree: Tree) -> None:
    """Raise ValueError where a run's copy of a file is missing, or is not what its name tells."""
    for at, leaf in marked(tree, FilePath):
        path = Path(leaf.value)
        if path.parent.name != FILES or not _COPY.fullmatch(path.name):
            continue
        try:
            reason = None if path.name.startswith(digest(path.read_bytes())) else "is not the file that the run kept"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        if reason:
            raise ValueError(f"{leaf.origin}: {at}: {path} {reason}; put it back, or name one, --set {at}=FILE")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]
