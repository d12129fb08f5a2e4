"""The names in one configuration file: its imports, and the classes and presets that they give access to."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from gin import config_parser as gin

from jaxtrain.cli import config_moved
from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_names import nearest
from jaxtrain.cli.config_target import checked_target
from jaxtrain.record.walk import label


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """`@scope/module.Class()`."""

    scope: str
    target: Callable


@dataclass(frozen=True, kw_only=True, slots=True)
class Macro:
    """`%name`."""

    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RawReference:
    scoped_name: str
    called: bool


class Delegate(gin.ParserDelegate):
    """Keeps references unresolved. They are resolved one statement at a time, where the line is known for errors."""

    def configurable_reference(self, scoped_name: str, called: bool) -> RawReference:
        return RawReference(scoped_name=scoped_name, called=called)

    def macro(self, name: str) -> Macro:
        return Macro(name=name)


class Symbols:
    """The imports of one file, which lies in `folder`. They hold for that file only, as in gin."""

    def __init__(self, imports: Imports, folder: Path):
        self._imports, self._folder = imports, folder
        self._dynamic = False
        self._modules: dict[str, ModuleType] = {}

    def add(self, statement: gin.ImportStatement) -> None:
        if statement.module == "__gin__.dynamic_registration":
            self._dynamic = True
            return
        if not self._dynamic:
            raise ValueError("write `from __gin__ import dynamic_registration` above the first import")
        module = config_moved.module(self._imports, statement.module, beside=self._folder)
        whole = statement.is_from or statement.alias
        self._modules[statement.bound_name()] = module if whole else sys.modules[statement.bound_name()]

    def target(self, selector: str) -> Callable:
        """Return the class or function that `module.name` stands for."""
        first, *rest = selector.split(".")
        if first not in self._modules:
            raise ValueError(f"{selector}: no import provides {first!r}{nearest(first, self._modules)}")
        target: object = self._modules[first]
        above = self._modules[first].__name__
        for name in rest:
            own = vars(target) if isinstance(target, ModuleType | type) else {}
            if name not in own and (moved := config_moved.MOVED.get(f"{above}.{name}")):
                module, name = moved
                own = vars(self._imports.module(module))
            if name not in own:
                public = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
                raise ValueError(f"{selector}: {above} has no {name!r}{nearest(name, public)}")
            target, above = own[name], f"{above}.{name}"
        return checked_target(target, selector)

    def dataclass(self, selector: str) -> type:
        target = self.target(selector)
        if not isinstance(target, type):
            raise ValueError(f"{label(target)} is a function; only keys of dataclasses can be bound")
        return target

    def value(self, value: object) -> object:
        """Return a parsed value with its references resolved, and its lists as tuples."""
        if isinstance(value, tuple | list):
            return tuple(map(self.value, value))
        if not isinstance(value, RawReference):
            return value
        if not value.called:
            raise ValueError(f"@{value.scoped_name} is the class itself; write @{value.scoped_name}()")
        scope, _, selector = value.scoped_name.rpartition("/")
        return Reference(scope=scope, target=self.target(selector))
