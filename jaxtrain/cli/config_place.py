"""Where `--set` puts a value: the place of a path in the tree, such as `optimizer.learning_rate.peak`."""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_type_hints

from jaxtrain.cli.config_names import either, meant, spelled_like, synonyms
from jaxtrain.cli.config_tree import Items, Leaf, Node, Tree, field_name, has_moved
from jaxtrain.cli.config_types import item_hint
from jaxtrain.record.literal import shorten
from jaxtrain.record.walk import config_fields, join, label

ORIGIN = "--set"
_NAMED = 6  # most entries of a tuple in an error


class Place(NamedTuple):
    """Where a value goes: a key of its parent, the annotation it must fit, and its path."""

    parent: Node | Items
    key: str | int
    hint: object
    at: str

    @property
    def now(self) -> Tree | None:
        """What is there; None for a required key that has no value yet, and behind the last entry of a tuple."""
        if isinstance(self.parent, Node):
            return self.parent.children.get(str(self.key))
        return self.parent.children[int(self.key)] if int(self.key) < len(self.parent.children) else None

    def put(self, tree: Tree) -> None:
        """Put a tree there. Behind the last entry of a tuple it becomes another entry."""
        if isinstance(self.parent, Node):
            self.parent.children[str(self.key)] = tree
        else:
            self.parent.children[int(self.key) :] = [tree, *self.parent.children[int(self.key) + 1 :]]


def find_place(root: Node, path: str) -> Place:
    """Return the place of a path in the tree.

    Raises:
        ValueError: there is no such path, with the nearest valid name. For a key named by its class, as in a file, the
            message has its path.
    """
    keys = re.sub(r"\[([0-9]+)\]", r".\1", path).split(".")
    try:
        place = _below(root, root, root.cls, "", keys[0])
        for position, key in enumerate(keys[1:], 2):
            if (tree := place.now) is None:
                raise ValueError(f"{place.at} is not set yet; set it first, {ORIGIN} {place.at}='@...()'")
            place = _below(root, tree, place.hint, place.at, key, may_be_new=position == len(keys))
    except ValueError as error:
        raise ValueError(_named_by_class(root, keys) or str(error)) from error
    return place


def _named_by_class(root: Node, keys: list[str]) -> str | None:
    """Return the error for a key named as in a file, such as `schedules.Cosine.peak`; None where it names no class."""
    classes = [index for index, key in enumerate(keys) if key[:1].isupper()]
    if not classes:
        return None
    name, below = keys[classes[-1]], keys[classes[-1] + 1 :]
    places = [_path_below(at, node, below) for at, node in nodes(root, "") if node.cls.__name__ == name]
    here = f"here {' or '.join(places)}" if places else "such as model.d_model"
    return f"in {ORIGIN} a key is its place in the tree, {here}; see jaxtrain config show"


def _path_below(at: str, node: Node, keys: list[str]) -> str:
    """Return the path of a key below a node. Its first part is the nearest key of the node; for none it is the node."""
    near = [name for key in keys[:1] for name in meant(key, config_fields(node.cls))[:1]]
    below = near + keys[1:] if near else []
    return functools.reduce(join, (int(key) if _is_index(key) else key for key in below), at)


def nodes(tree: Tree, at: str) -> Iterator[tuple[str, Node]]:
    """Yield every node of a tree, with its path."""
    entries: Iterable[tuple[str | int, Tree]]
    match tree:
        case Leaf():
            return
        case Node(children=children):
            yield at, tree
            entries = children.items()
        case Items(children=children):
            entries = enumerate(children)
    for key, child in entries:
        yield from nodes(child, join(at, key))


def _below(root: Node, parent: Tree, hint: object, at: str, key: str, *, may_be_new: bool = False) -> Place:
    """Return the place of a child, from the annotation and the path of its parent.

    With `may_be_new` it may be the place behind the last entry of a tuple.
    """
    match parent:
        case Node():
            if elsewhere := _elsewhere(root, parent.cls, at, key):
                classes = {at: label(node.cls) for at, node in nodes(root, "")}
                of = {path: classes[path.rpartition(".")[0]] for path in elsewhere if "[" in path}
                raise ValueError(f"{label(parent.cls)} has no key {shorten(key)!r}{either(elsewhere, of)}")
            key = field_name(parent.cls, key)
            return Place(parent, key, get_type_hints(parent.cls)[key], join(at, key))
        case Items() if _is_index(key) and int(key) < len(parent.children) + may_be_new:
            return Place(parent, int(key), item_hint(hint), join(at, int(key)))
        case Items():
            raise ValueError(f"{at} has no entry {shorten(key)!r}; it has {_listed(parent)}")
    raise ValueError(f"{at} is a plain value, there is no {shorten(key)!r} below it; set it as a whole")


def _listed(items: Items) -> str:
    """Return the number of entries of a tuple, and the classes of the first."""
    named = [f"{i} {item.cls.__name__}" for i, item in enumerate(items.children) if isinstance(item, Node)]
    shown = ", ".join(named[:_NAMED] + ["..."] * (len(named) > _NAMED))
    return f"{len(items.children)}, counted from 0" + (f": {shown}" if named else "")


def _elsewhere(root: Node, cls: type, at: str, key: str) -> list[str]:
    """Return the paths of the keys that are meant, below `at` or else anywhere. None where a key of `cls` is meant."""
    own = config_fields(cls)
    if has_moved(cls, key):
        return []
    paths = [(join(above, name), name) for above, node in nodes(root, "") for name in config_fields(node.cls)]
    for alike in (synonyms, spelled_like):
        if alike(key, own):
            return []
        names = alike(key, [name for _, name in paths])
        if found := [path for path, name in paths if name in names]:
            return [path for path in found if path.startswith(f"{at}.")] or found
    return []


def _is_index(key: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", key) is not None
