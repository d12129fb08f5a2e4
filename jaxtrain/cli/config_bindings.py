"""What a configuration's files bind, key by key, and the tree of configurations that this makes.

A file binds fields of classes, each in a scope; references and macros say which instance goes where.
"""

from typing import NamedTuple

from jaxtrain.cli import config_moved
from jaxtrain.cli.config_symbols import Macro, Reference
from jaxtrain.cli.config_target import check_fits
from jaxtrain.cli.config_tree import Leaf, Node, Slot, Tree, check_field, new_node, plant, sequence
from jaxtrain.cli.config_types import label, nearest


class Location(NamedTuple):
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Key(NamedTuple):
    """What a line binds: a field of a class in a scope, or (`cls` None) the macro `name`."""

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
    """Everything a file and those it includes bind, and the tree that this makes."""

    def __init__(self):
        self._bound: dict[Key, Bound] = {}
        self._replaced: list[tuple[Key, Bound, Location]] = []
        self._used: set[Key] = set()
        self._references: set[str] = set()

    def bind(self, key: Key, bound: Bound) -> None:
        """Add one binding; the last one of a key counts, and no file may have two."""
        if key.cls:
            key = key._replace(name=config_moved.KEYS.get(f"{label(key.cls)}.{key.name}", key.name))
            check_field(key.cls, key.name)
        if old := self._bound.get(key):
            if old.location.file == bound.location.file and old.location != bound.location:
                raise ValueError(f"{key} is bound already, at {old.location}; remove one of the two")
            self._replaced.append((key, old, bound.location))
        self._bound[key] = bound

    def tree(self, root: type, origin: str) -> Node:
        """The tree under the one unscoped instance of `root`."""
        if not any(key.cls is root for key in self._bound):
            raise ValueError(f"{origin} binds no key of {label(root)}, the root of every configuration")
        tree = self._plant(Reference(scope="", target=root), Slot("", root), "", origin, ())
        for replaced in self._replaced:
            self._excuse(*replaced)
        for key, bound in self._bound.items():
            if key not in self._used:
                raise ValueError(f"{bound.location}: {key} is unused: {self._why_unused(key)}")
        return tree

    def _excuse(self, key: Key, old: Bound, by: Location) -> None:
        """Count as used what the replaced value would have used, outside the file that replaced it."""
        used = set(self._used)
        self._follow(old.value, key.scope, set())
        self._used -= {key for key in self._used - used if self._bound[key].location.file == by.file}

    def _follow(self, value: object, scope: str, seen: set) -> None:
        """Count as used what a value refers to, without calling anything."""
        if isinstance(value, tuple):
            for item in value:
                self._follow(item, scope, seen)
        if not isinstance(value, Macro | Reference) or (value, scope) in seen:
            return
        seen.add((value, scope))
        if isinstance(value, Macro):
            inner, reached = value.name, self._defined(value.name)
        else:
            inner = value.scope or scope
            reached = list(self._visible(value.target, inner).values())
        for bound in reached:
            self._follow(bound.value, inner, seen)

    def _why_unused(self, key: Key) -> str:
        if key.cls is None:
            return "no value refers to it; use it or remove it"
        name = scoped(key.scope, label(key.cls))
        return f"nothing refers to @{name}(){nearest(name, self._references)}"

    def _plant(self, value: object, slot: Slot, scope: str, origin: str, within: tuple) -> Tree:
        """The tree of a bound value. A reference without a scope inherits the one it is met in, as in gin."""
        match value:
            case Reference():
                return self._plant_reference(value, slot, value.scope or scope, origin, within)
            case Macro():
                bound = self._macro(value.name, origin, within)
                return self._plant(bound.value, slot, value.name, str(bound.location), (*within, value))
            case tuple():
                items = [self._plant(item, slot.item(i), scope, origin, within) for i, item in enumerate(value)]
                return sequence(items, origin)
        return Leaf(value=value, origin=origin)

    def _plant_reference(self, reference: Reference, slot: Slot, scope: str, origin: str, within: tuple) -> Tree:
        cls, name = reference.target, scoped(scope, label(reference.target))
        if (cls, scope) in within:
            raise ValueError(f"{origin}: @{name}() contains itself; give the inner one a scope of its own")
        self._references.add(name)
        try:
            check_fits(cls, slot)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from None
        if not isinstance(cls, type):
            return plant(cls(), origin)
        within = (*within, (cls, scope))
        children = {
            key: self._plant(bound.value, slot.field(cls, key), scope, str(bound.location), within)
            for key, bound in self._visible(cls, scope).items()
        }
        return new_node(cls, children, origin)

    def _visible(self, cls: type, scope: str) -> dict[str, Bound]:
        """Keys that `cls` sees in a scope: those of `a/b` win over those of `a`, and those over unscoped ones."""
        parts = scope.split("/") if scope else []
        given = {}
        for outer in ("/".join(parts[:depth]) for depth in range(len(parts) + 1)):
            visible = {key: bound for key, bound in self._bound.items() if key.cls is cls and key.scope == outer}
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
        """What a macro stands for, if there is one of the name."""
        key = Key("", None, name)
        if key not in self._bound:
            return []
        self._used.add(key)
        return [self._bound[key]]
