"""The files that a configuration names: the fields annotated `FilePath` or `Glob` (jaxtrain/paths.py), at any depth.

In the config.gin of a run a path may begin with `{run}/`, which stands for the folder of the config.gin. The run's own
copies of files are named in this way. The name of a copy begins with a digest of its content (record/files.py).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAliasType, get_args, get_type_hints

from jaxtrain.cli.config_tree import Items, Leaf, Node, Tree
from jaxtrain.paths import FilePath
from jaxtrain.record.files import DIGITS, HERE, digest
from jaxtrain.record.walk import join
from jaxtrain.train.folder import FILES

_COPY = re.compile(rf"[0-9a-f]{{{DIGITS}}}-.+", re.DOTALL)


class Marked(NamedTuple):
    """A field annotated with a mark: the path of its key, its text, and its leaf in the tree."""

    at: str
    text: str
    leaf: Leaf


def marked(tree: Tree, mark: TypeAliasType, hint: object = None, at: str = "") -> Iterator[Marked]:
    """Yield every field whose annotation is the mark or a union with it, and whose value is a text."""
    match tree:
        case Leaf(value=str() as text) if mark in (hint, *get_args(hint)):
            yield Marked(at, text, tree)
        case Items(children=children):
            for index, child in enumerate(children):
                yield from marked(child, mark, None, join(at, index))
        case Node(cls=cls, children=children):
            hints = get_type_hints(cls)
            for name, child in children.items():
                yield from marked(child, mark, hints[name], join(at, name))


def resolve(tree: Tree) -> None:
    """Replace `{run}` in every path by the folder of the configuration file that the path was written in."""
    for _, text, leaf in marked(tree, FilePath):
        if text.startswith(HERE):
            file, _, _ = leaf.origin.rpartition(":")
            leaf.value = str(Path(file).parent / text.removeprefix(HERE))


def check_copies(tree: Tree) -> None:
    """Raise ValueError where a run's copy of a file is missing, or its content has not the digest in its name."""
    for at, text, leaf in marked(tree, FilePath):
        path = Path(text)
        if path.parent.name != FILES or not _COPY.fullmatch(path.name):
            continue
        try:
            reason = None if path.name.startswith(digest(path.read_bytes())) else "is not the file that the run kept"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        if reason:
            raise ValueError(f"{leaf.origin}: {at}: {path} {reason}; put it back, or name one, --set {at}=FILE")
