"""The bindings of a configuration's files, and the tree of configurations that they make.

A file binds fields of classes, each in a scope. References and macros say which instance goes where.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtrain.cli.config_names import either, meant, nearest
from jaxtrain.cli.config_options import keys_below
from jaxtrain.cli.config_symbols import Macro, Reference
from jaxtrain.cli.config_target import check_fits
from jaxtrain.cli.config_tree import (
    Leaf,
    Node,
    Slot,
    Tree,
    field_name,
    has_moved,
    is_neutral,
    new_node,
    sequence,
    tree_of,
)
from jaxtrain.record.walk import config_fields, label


class Location(NamedTuple):
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Key(NamedTuple):
    """What a line binds: a field of a class in a scope, or, where `cls` is None, the macro `name`."""

    scope: str
    cls: type | None
    name: str

    def __str__(self) -> str:
        return f"{scoped(self.scope, label(self.cls))}.{self.name}" if self.cls else f"the macro {self.name}"


class Bound(NamedTuple):
    value: object
    location: Location


def scoped(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name


class Bindings:
    """All bindings of a file and of the files that it includes, and the tree that they make."""

    def __init__(self):
        self._bound: dict[Key, Bound] = {}
        self._replaced: list[tuple[Key, Bound, Location]] = []
        self._used: set[Key] = set()
        self._references: set[str] = set()

    def bind(self, key: Key, bound: Bound) -> None:
        """Add one binding, which replaces an earlier one of its key. A removed key that changed nothing is left out.

        Raises:
            ValueError: the class has no such key, or a file binds the key twice.
        """
        if cls := key.cls:
            if is_neutral(cls, key.name, bound.value):
                return
            key = key._replace(name=self._field_name(cls, key.name))
        if old := self._bound.get(key):
            if old.location.file == bound.location.file and old.location != bound.location:
                raise ValueError(f"{key} is bound already, at {old.location}; remove one of the two")
            self._replaced.append((key, old, bound.location))
        self._bound[key] = bound

    def _field_name(self, cls: type, name: str) -> str:
        if not has_moved(cls, name) and not meant(name, config_fields(cls)):
            keys = dict.fromkeys(f"{label(key.cls)}.{key.name}" for _, key in keys_below([cls], name))
            if keys:
                raise ValueError(f"{label(cls)} has no key {name!r}{either(list(keys))}")
        return field_name(cls, name)

    def tree(self, root: type, origin: str) -> Node:
        """Return the tree under the one unscoped instance of `root`. Raises ValueError for a key that is unused."""
        if not any(key.cls is root for key in self._bound):
            raise ValueError(f"{origin} binds no key of {label(root)}, the root of every configuration")
        self._references.add(label(root))
        tree = self._node(root, Slot("", root), "", origin, ((root, ""),))
        for replaced in self._replaced:
            self._mark_replaced(*replaced)
        for key, bound in self._bound.items():
            if key not in self._used:
                raise ValueError(f"{bound.location}: {key} is unused: {self._why_unused(key)}")
        return tree

    def _mark_replaced(self, key: Key, old: Bound, by: Location) -> None:
        """Mark the keys that a replaced value refers to as used, but for those in the file that replaced it."""
        used = set(self._used)
        self._mark_used(old.value, key.scope, set())
        self._used -= {key for key in self._used - used if self._bound[key].location.file == by.file}

    def _mark_used(self, value: object, scope: str, seen: set) -> None:
        """Mark the keys that a value refers to as used, without calling anything."""
        if isinstance(value, tuple):
            for item in value:
                self._mark_used(item, scope, seen)
        if not isinstance(value, Macro | Reference) or (value, scope) in seen:
            return
        seen.add((value, scope))
        if isinstance(value, Macro):
            inner, referred = value.name, self._defined(value.name)
        else:
            inner = value.scope or scope
            referred = list(self._visible(value.target, inner).values())
        for bound in referred:
            self._mark_used(bound.value, inner, seen)

    def _why_unused(self, key: Key) -> str:
        if key.cls is None:
            return "no value refers to it; use it or remove it"
        name = scoped(key.scope, label(key.cls))
        return f"nothing refers to @{name}(){nearest(name, self._references)}"

    def _tree(self, value: object, slot: Slot, scope: str, origin: str, within: tuple) -> Tree:
        """Return the tree of a bound value. A reference without a scope takes the enclosing scope, as in gin."""
        match value:
            case Reference():
                return self._reference_tree(value, slot, value.scope or scope, origin, within)
            case Macro():
                bound = self._macro(value.name, origin, within)
                return self._tree(bound.value, slot, value.name, str(bound.location), (*within, value))
            case tuple():
                items = [self._tree(item, slot.item(i), scope, origin, within) for i, item in enumerate(value)]
                return sequence(items, origin)
        return Leaf(value=value, origin=origin)

    def _reference_tree(self, reference: Reference, slot: Slot, scope: str, origin: str, within: tuple) -> Tree:
        target, name = reference.target, scoped(scope, label(reference.target))
        if (target, scope) in within:
            raise ValueError(f"{origin}: @{name}() contains itself; give the inner one a scope of its own")
        self._references.add(name)
        try:
            check_fits(target, slot)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
        if not isinstance(target, type):
            return tree_of(target(), origin)
        return self._node(target, slot, scope, origin, (*within, (target, scope)))

    def _node(self, cls: type, slot: Slot, scope: str, origin: str, within: tuple) -> Node:
        children = {
            key: self._tree(bound.value, slot.field(cls, key), scope, str(bound.location), within)
            for key, bound in self._visible(cls, scope).items()
        }
        return new_node(cls, children, origin)

    def _visible(self, target: Callable, scope: str) -> dict[str, Bound]:
        """Return the bindings of `target` that hold in a scope. Those of an inner scope override an outer scope's."""
        parts = scope.split("/") if scope else []
        given = {}
        for outer in ("/".join(parts[:depth]) for depth in range(len(parts) + 1)):
            visible = {key: bound for key, bound in self._bound.items() if key.cls is target and key.scope == outer}
            self._used.update(visible)
            given.update({key.name: bound for key, bound in visible.items()})
        return given

    def _macro(self, name: str, origin: str, within: tuple) -> Bound:
        if Macro(name=name) in within:
            raise ValueError(f"{origin}: %{name} contains itself")
        for bound in self._defined(name):
            return bound
        macros = [key.name for key in self._bound if key.cls is None]
        raise ValueError(f"{origin}: there is no macro {name!r}{nearest(name, macros)}")

    def _defined(self, name: str) -> list[Bound]:
        """Return the binding of a macro in a list, which is empty where there is no such macro."""
        key = Key("", None, name)
        if key not in self._bound:
            return []
        self._used.add(key)
        return [self._bound[key]]
