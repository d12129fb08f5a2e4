"""Configuration files: gin text to a tree of frozen dataclasses, and `--set` on top of it.

    from __gin__ import dynamic_registration
    from jaxtrain import config
    from jaxtrain.nn import attention

    include "base.gin"
    width = 512                                     # a macro, used as %width
    config.TrainConfig.model = @presets.tiny()      # a dataclass, or a function of no arguments that makes one
    local/attention.AttentionConfig:                # scopes tell several instances of a class apart
      window = 4096

The language and its parser are gin's, and gin itself reads these files to the same configuration (with lists for tuples
where a file writes lists). What they bind is put together here, because gin drops keys that nothing refers to, does not
check types, does not remember lines, and keeps all it reads in global state.

An unused key is an error, but for one case: where a file gives a key of an included file another value, the keys that
only the old value used may stay unused in the included file.

Left out: gin's constants, singletons and references that are not called.
"""

import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gin import config_parser as gin

from jaxtrain.cli.config_override import apply_override
from jaxtrain.cli.config_paths import check_copies, resolve
from jaxtrain.cli.config_symbols import Delegate, Macro, Reference, Symbols
from jaxtrain.cli.config_tree import Leaf, Node, Tree, build, check_field, new_node, plant, sequence
from jaxtrain.cli.config_types import label, nearest
from jaxtrain.cli.neighbours import folders_beside


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig[T]:
    """A configuration, and where the value of each path came from: `file:line`, `default` or `--set`."""

    config: T
    origins: dict[str, str]


def load[T](path: str | Path, overrides: Sequence[str] = (), *, root: type[T] | None = None) -> LoadedConfig[T]:
    """Read a .gin file, or the config.gin of a run folder, and apply `path=value` overrides.

    `root` is the class of the whole configuration: TrainConfig if none is given.

    Raises:
        FileNotFoundError: the file or one it includes is not there.
        ValueError: a key is unknown, unused, missing or of the wrong type, with file, line and nearest valid name.
    """
    path = _find(Path(path) / "config.gin" if Path(path).is_dir() else Path(path), [Path()])
    if root is None:
        from jaxtrain.config import TrainConfig as root  # here, since it imports all that a run may consist of
    bindings = Bindings()
    _read(path, bindings, ())
    tree = bindings.tree(root, str(path))
    resolve(tree)
    for override in overrides:
        apply_override(tree, override)
    check_copies(tree)
    origins: dict[str, str] = {}
    return LoadedConfig(config=build(tree, origins), origins=origins)


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
        return f"{_scoped(self.scope, label(self.cls))}.{self.name}" if self.cls else f"the macro {self.name}"


class Bound(NamedTuple):
    value: object
    location: Location


def _scoped(scope: str, name: str) -> str:
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
        tree = self._plant(Reference(scope="", target=root), "", origin, ())
        for replaced in self._replaced:
            self._excuse(*replaced)
        for key, bound in self._bound.items():
            if key not in self._used:
                raise ValueError(f"{bound.location}: {key} is unused: {self._why_unused(key)}")
        return tree

    def _excuse(self, key: Key, old: Bound, by: Location) -> None:
        """Count as used what the replaced value would have used, outside the file that replaced it."""
        used = set(self._used)
        self._plant(old.value, key.scope, str(old.location), ())
        self._used -= {key for key in self._used - used if self._bound[key].location.file == by.file}

    def _why_unused(self, key: Key) -> str:
        if key.cls is None:
            return "no value refers to it; use it or remove it"
        name = _scoped(key.scope, label(key.cls))
        return f"nothing refers to @{name}(){nearest(name, self._references)}"

    def _plant(self, value: object, scope: str, origin: str, within: tuple) -> Tree:
        """The tree of a bound value. A reference without a scope inherits the one it is met in, as in gin."""
        match value:
            case Reference():
                return self._plant_reference(value, value.scope or scope, origin, within)
            case Macro():
                bound = self._macro(value.name, origin, within)
                return self._plant(bound.value, value.name, str(bound.location), (*within, value))
            case tuple():
                return sequence([self._plant(item, scope, origin, within) for item in value], origin)
        return Leaf(value=value, origin=origin)

    def _plant_reference(self, reference: Reference, scope: str, origin: str, within: tuple) -> Tree:
        cls, name = reference.target, _scoped(scope, label(reference.target))
        if (cls, scope) in within:
            raise ValueError(f"{origin}: @{name}() contains itself; give the inner one a scope of its own")
        self._references.add(name)
        if not isinstance(cls, type):
            return plant(cls(), origin)
        within = (*within, (cls, scope))
        given = self._visible(cls, scope).items()
        return new_node(cls, {k: self._plant(b.value, scope, str(b.location), within) for k, b in given}, origin)

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
        key = Key("", None, name)
        if key not in self._bound:
            macros = [key.name for key in self._bound if key.cls is None]
            raise ValueError(f"{origin}: there is no macro {name!r}{nearest(name, macros)}")
        if Macro(name=name) in within:
            raise ValueError(f"{origin}: %{name} contains itself")
        self._used.add(key)
        return self._bound[key]


def _find(path: Path, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    there = [file.name for folder in folders for file in (folder / path).parent.glob("*.gin")]
    if not path.suffix:
        wanted, there = "configuration file and no run", there + folders_beside(path)
    else:
        wanted = "configuration file"
    raise FileNotFoundError(f"there is no {wanted} {str(path)!r}{nearest(path.name, there)}")


def _read(path: Path, bindings: Bindings, including: tuple[Path, ...]) -> None:
    """Add what a file and those it includes bind."""
    including = (*including, path.resolve())
    symbols = Symbols()
    for statement in _statements(path):
        location = Location(str(path), statement.location.line_num)
        if isinstance(statement, gin.IncludeStatement):
            _read(_included(statement.filename, location, including), bindings, including)
            continue
        try:
            _apply(statement, symbols, bindings, location)
        except ValueError as error:
            raise ValueError(f"{location}: {error}") from error


def _included(name: str, location: Location, including: tuple[Path, ...]) -> Path:
    """An included file: beside the one that includes it, or in the working directory or its configs/."""
    try:
        path = _find(Path(name), [Path(location.file).parent, Path(), Path("configs")])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location}: {error}") from None
    if path.resolve() in including:
        raise ValueError(f"{location}: {name!r} includes itself")
    return path


def _apply(statement: tuple, symbols: Symbols, bindings: Bindings, location: Location) -> None:
    match statement:
        case gin.ImportStatement():
            symbols.add(statement)
        case gin.BindingStatement(scope=scope, selector=name, arg_name="", value=value):
            bindings.bind(Key("", None, _scoped(scope, name)), Bound(symbols.value(value), location))
        case gin.BindingStatement(scope=scope, selector=selector, arg_name=name, value=value):
            key = Key(scope, symbols.dataclass(selector), name)
            bindings.bind(key, Bound(symbols.value(value), location))


def _statements(path: Path) -> Iterator[tuple]:
    try:
        yield from gin.ConfigParser(path.read_text(encoding="utf-8"), Delegate())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    except SyntaxError as error:
        message = error.msg.splitlines()[-1].strip()
        remedy = "; write strings in quotes" if "parse token" in message else ""
        raise ValueError(f"{path}:{error.lineno}: {message}{remedy}") from None
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise ValueError(f"{path}:{line}: {message}") from None
