"""The tree of a configuration, from which its dataclasses are built.

A file fills the tree, `--set` changes it, and `build` then calls every dataclass once, from the leaves up. So two
overrides that are valid only together are checked together. A required field may come from the file or from `--set`.
"""

from dataclasses import MISSING, dataclass, is_dataclass
from typing import NamedTuple, get_type_hints

from jaxtrain.cli.config_moved import CHANGED_VALUES, REMOVED_KEYS, RENAMED_KEYS
from jaxtrain.cli.config_names import few, nearest
from jaxtrain.cli.config_types import convert, describe_hint, in_a_tuple, item_hint
from jaxtrain.record.walk import config_fields, describe, join, label
from jaxtrain.technique import lacking

DEFAULT = "default"


@dataclass(kw_only=True, slots=True)
class Leaf:
    """A plain value, or a tuple of them."""

    value: object
    origin: str


@dataclass(kw_only=True, slots=True)
class Node:
    """A dataclass that is not built yet. A required field without a value is absent from `children`."""

    cls: type
    children: dict[str, "Tree"]
    origin: str


@dataclass(kw_only=True, slots=True)
class Items:
    """A tuple that holds nodes."""

    children: list["Tree"]
    origin: str


type Tree = Leaf | Node | Items


class Slot(NamedTuple):
    """Where a value will be put: the path, the annotation that the value must fit, and what to write in its place."""

    path: str
    hint: object
    remedy: str = ""

    def field(self, cls: type, name: str) -> "Slot":
        return Slot(join(self.path, name), get_type_hints(cls)[name], remedy(cls, name))

    def item(self, index: int) -> "Slot":
        return Slot(join(self.path, index), item_hint(self.hint))


def field_name(cls: type, name: str) -> str:
    """Return the present name of a field. Raises ValueError, with the nearest name, where `cls` has no such field."""
    name = RENAMED_KEYS.get(f"{label(cls)}.{name}", name)
    known = config_fields(cls)
    if name not in known:
        if removed := REMOVED_KEYS.get(f"{label(cls)}.{name}"):
            found = f"; it is no key any more: {removed.remedy}"
        else:
            found = nearest(name, known) or few(known)
        raise ValueError(f"{label(cls)} has no key {name!r}{found}")
    return name


def remedy(cls: type, name: str) -> str:
    """Return the end of an error about a value that does not fit: what is written in place of an earlier version's."""
    changed = CHANGED_VALUES.get(f"{label(cls)}.{name}")
    return f"; {changed}" if changed else ""


def has_moved(cls: type, name: str) -> bool:
    """Tell whether `name` was a field of `cls` in earlier versions."""
    key = f"{label(cls)}.{name}"
    return key in RENAMED_KEYS or key in REMOVED_KEYS


def is_neutral(cls: type, name: str, value: object) -> bool:
    """Tell whether `cls` has no field `name` any more, and the value is the one that changed nothing."""
    removed = REMOVED_KEYS.get(f"{label(cls)}.{name}")
    return removed is not None and removed.neutral == value


def new_node(cls: type, given: dict[str, Tree], origin: str) -> Node:
    """Return a node with the given children, and the defaults of its class for the other fields."""
    children = dict(given)
    for name, field in config_fields(cls).items():
        if name not in given and field.default is not MISSING:
            children[name] = tree_of(field.default, DEFAULT)
        elif name not in given and field.default_factory is not MISSING:
            children[name] = tree_of(field.default_factory(), DEFAULT)
    return Node(cls=cls, children=children, origin=origin)


def tree_of(value: object, origin: str) -> Tree:
    """Return the tree of a built value: a node for a dataclass, items or a leaf for a tuple, a leaf for another."""
    if is_dataclass(value) and not isinstance(value, type):
        return node_of(value, origin)
    if isinstance(value, tuple | list):
        return sequence([tree_of(item, origin) for item in value], origin)
    return Leaf(value=value, origin=origin)


def node_of(value: object, origin: str) -> Node:
    """Return the tree of a built dataclass."""
    children = {name: tree_of(getattr(value, name), origin) for name in config_fields(type(value))}
    return Node(cls=type(value), children=children, origin=origin)


def sequence(children: list[Tree], origin: str) -> Tree:
    """Return the tree of a tuple: one leaf where it holds plain values only."""
    leaves = [child for child in children if isinstance(child, Leaf)]
    if len(leaves) == len(children):
        return Leaf(value=tuple(leaf.value for leaf in leaves), origin=origin)
    return Items(children=children, origin=origin)


def build(tree: Tree, origins: dict[str, str], path: str = "") -> object:
    """Build the dataclasses of the tree, and write the origin of each path's value into `origins`.

    Raises:
        ValueError: a field is missing or of the wrong type, or a `__post_init__` raised; with the path.
    """
    origins[path] = tree.origin
    match tree:
        case Leaf():
            return tree.value
        case Items():
            return tuple(build(child, origins, join(path, i)) for i, child in enumerate(tree.children))
        case Node():
            return _build_node(tree, origins, path)


def _build_node(node: Node, origins: dict[str, str], path: str) -> object:
    where = f"{_at(node.origin)}{path} ({label(node.cls)})" if path else f"{_at(node.origin)}{label(node.cls)}"
    for name, base in lacking(node.cls):
        raise ValueError(f"{where} lacks `{name}`, which {base.__module__}.{base.__name__} asks of it: write it")
    try:
        hints = get_type_hints(node.cls)
    except (NameError, SyntaxError) as error:
        raise ValueError(f"{where} has an annotation that cannot be read: {error}") from error
    values = {name: _build_field(node, hints[name], origins, path, name) for name in config_fields(node.cls)}
    try:
        return node.cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except (ArithmeticError, LookupError, TypeError, AttributeError) as error:  # from the code of a user's class
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def _build_field(node: Node, hint: object, origins: dict[str, str], path: str, name: str) -> object:
    path = join(path, name)
    if name not in node.children:
        key = f"{label(node.cls)}.{name}"
        raise ValueError(f"{_at(node.origin)}{path} is missing: bind {key}, or give --set {path}=...")
    value = build(node.children[name], origins, path)
    try:
        return convert(value, hint)
    except TypeError:
        kind = "" if is_dataclass(value) or value is None else f", not {type(value).__name__}"
        made = type(value) if is_dataclass(value) else None
        instead = remedy(node.cls, name) or in_a_tuple(hint, made)
        wrong = f"must be {describe_hint(hint)}{kind}{instead}"
    except ValueError as error:
        wrong = str(error)
    raise ValueError(f"{_at(node.children[name].origin)}{path}={describe(value)} {wrong}")


def _at(origin: str) -> str:
    return "" if origin == DEFAULT else f"{origin}: "
