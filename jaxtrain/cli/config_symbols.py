"""What the names in one configuration file stand for: its imports, and the classes and presets reached through them."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from types import ModuleType

from gin import config_parser as gin

from jaxtrain.cli.config_types import label, nearest


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
    """Leaves references as written: they are resolved a statement at a time, where the line is known."""

    def configurable_reference(self, scoped_name: str, called: bool) -> RawReference:
        return RawReference(scoped_name=scoped_name, called=called)

    def macro(self, name: str) -> Macro:
        return Macro(name=name)


def check_target(target: object) -> None:
    """Raise ValueError unless calling `target` with nothing bound makes a configuration: a dataclass, or a preset."""
    preset = inspect.isfunction(target) and not inspect.signature(target).parameters
    if not preset and not (isinstance(target, type) and is_dataclass(target)):
        raise ValueError(f"{target!r} is neither a dataclass nor a function of no arguments that makes one")


class Symbols:
    """The imports of one file. They hold for that file only, as in gin."""

    def __init__(self):
        self._dynamic = False
        self._modules: dict[str, ModuleType] = {}

    def add(self, statement: gin.ImportStatement) -> None:
        if statement.module == "__gin__.dynamic_registration":
            self._dynamic = True
            return
        if not self._dynamic:
            raise ValueError("write `from __gin__ import dynamic_registration` above the first import")
        module = _import(statement.module)
        whole = statement.is_from or statement.alias
        self._modules[statement.bound_name()] = module if whole else importlib.import_module(statement.bound_name())

    def target(self, selector: str) -> Callable:
        """The class or function that `module.name` stands for."""
        first, *rest = selector.split(".")
        if first not in self._modules:
            raise ValueError(f"{selector}: no import provides {first!r}{nearest(first, self._modules)}")
        target = self._modules[first]
        for name in rest:
            if name not in vars(target):
                public = [key for key, value in vars(target).items() if callable(value) and not key.startswith("_")]
                raise ValueError(f"{selector}: {target.__name__} has no {name!r}{nearest(name, public)}")
            target = vars(target)[name]
        check_target(target)
        return target

    def dataclass(self, selector: str) -> type:
        target = self.target(selector)
        if not isinstance(target, type):
            raise ValueError(f"{label(target)} is a function; only keys of dataclasses can be bound")
        return target

    def value(self, value: object) -> object:
        """A parsed value, with its references resolved."""
        if isinstance(value, tuple | list):
            return tuple(map(self.value, value))
        if not isinstance(value, RawReference):
            return value
        if not value.called:
            raise ValueError(f"@{value.scoped_name} is the class itself; write @{value.scoped_name}()")
        scope, _, selector = value.scoped_name.rpartition("/")
        return Reference(scope=scope, target=self.target(selector))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something it needs is not
        parent, _, last = error.name.rpartition(".")
        path = getattr(importlib.import_module(parent), "__path__", None) if parent else None
        if parent and path is None:
            above, _, module = parent.rpartition(".")
            raise ValueError(
                f"{name}: {parent} is a module, and modules are imported, not what is in them: write "
                f"`{f'from {above} ' if above else ''}import {module}` and {module}.{last}"
            ) from None
        there = pkgutil.iter_modules(path)
        raise ValueError(f"there is no module {error.name!r}{nearest(last, [m.name for m in there])}") from None
