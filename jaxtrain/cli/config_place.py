"""Where `--set` puts a value: a key by its place in the tree, such as `optimizer.learning_rate.peak`."""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple, get_type_hints

from jaxtrain.cli.config_literal import shorten
from jaxtrain.cli.config_tree import Items, Leaf, Node, Tree, check_field, config_fields, join
from jaxtrain.cli.config_types import closest, item_hint

ORIGIN = "--set"


class Place(NamedTuple):
    """Where a value goes: a key of its parent, the annotation it must fit, and its path."""

    parent: Node | Items
    key: str | int
    hint: object
    at: str

    @property
    def now(self) -> Tree | None:
        """What is there; None for a required key that has no value yet."""
        return self.parent.children.get(self.key) if isinstance(self.parent, Node) else self.parent.children[self.key]


def find_place(root: Node, path: str) -> Place:
    """Return the place of a path in the tree.

    Raises:
        ValueError: there is no such path, with the nearest valid name, or the path of a key that is named by its class.
    """
    keys = re.sub(r"\[([0-9]+)\]", r".\1", path).split(".")
    parent, hint, at = root, type(root), ""
    try:
        for key in keys[:-1]:
            parent, hint, at = _child(parent, hint, at, key)
        key, hint = _key(parent, hint, at, keys[-1])
    except ValueError as error:
        raise ValueError(_named_by_class(root, keys) or str(error)) from error
    return Place(parent, key, hint, join(at, key))


def _named_by_class(root: Node, keys: list[str]) -> str | None:
    """What to say where a key is named as files name it, `schedules.Cosine.peak`; None where no class is in it."""
    classes = [index for index, key in enumerate(keys) if key[:1].isupper()]
    if not classes:
        return None
    name, below = keys[classes[-1]], keys[classes[-1] + 1 :]
    places = [_below(at, node, below) for at, node in nodes(root, "") if node.cls.__name__ == name]
    here = f"here {' or '.join(places)}" if places else "such as model.d_model"
    return f"in {ORIGIN} a key is its place in the tree, {here}; see jaxtrain config show"


def _below(at: str, node: Node, keys: list[str]) -> str:
    """The path of a key below a node, its first part spelt as the node has it."""
    first = [closest(key, config_fields(node.cls)) or key for key in keys[:1]]
    return functools.reduce(join, (int(key) if _is_index(key) else key for key in first + keys[1:]), at)


def nodes(tree: Tree, at: str) -> Iterator[tuple[str, Node]]:
    """Every node of a tree, with its path."""
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


def _key(parent: Tree, hint: object, at: str, key: str) -> tuple[str | int, object]:
    """The key of a child as its parent stores it, and the annotation it must fit."""
    match parent:
        case Node():
            check_field(parent.cls, key)
            return key, get_type_hints(parent.cls)[key]
        case Items() if _is_index(key) and int(key) < len(parent.children):
            return int(key), item_hint(hint)
        case Items():
            raise ValueError(f"{at} has no entry {shorten(key)!r}; it has {len(parent.children)}, counted from 0")
    raise ValueError(f"{at} is a plain value, there is no {shorten(key)!r} below it; set it as a whole")


def _is_index(key: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", key) is not None


def _child(parent: Tree, hint: object, at: str, key: str) -> tuple[Tree, object, str]:
    key, hint = _key(parent, hint, at, key)
    at = join(at, key)
    if isinstance(parent, Node) and key not in parent.children:
        raise ValueError(f"{at} is not set yet; set it first, {ORIGIN} {at}='@...()'")
    return parent.children[key], hint, at
