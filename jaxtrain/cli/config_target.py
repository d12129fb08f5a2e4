"""What a reference may stand for: a dataclass or a preset, whose result is known to fit its key before it is called.

A preset is a function of no arguments whose return annotation is the dataclass that it makes.
"""

import contextlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from types import ModuleType
from typing import Never, get_type_hints

from jaxtrain.cli.config_imports import Imports, NoModuleError
from jaxtrain.cli.config_names import nearest
from jaxtrain.cli.config_tree import Slot
from jaxtrain.cli.config_types import describe_hint, in_a_tuple, takes
from jaxtrain.record.walk import label


def made_by(target: object) -> type | None:
    """Return the dataclass that calling `target` without arguments makes, or None. Nothing is called to find out."""
    if isinstance(target, type):
        return target if is_dataclass(target) else None
    if not inspect.isfunction(target) or inspect.signature(target).parameters:
        return None
    try:
        made = get_type_hints(target).get("return")
    except (NameError, AttributeError, TypeError, SyntaxError):  # an annotation that cannot be resolved
        return None
    return made if isinstance(made, type) and is_dataclass(made) else None


def checked_target(target: object, name: str) -> Callable:
    """Return `target`. Raises ValueError unless it is a dataclass or a preset."""
    if made_by(target) is None or not callable(target):
        raise ValueError(
            f"{name} is neither a dataclass nor a function of no arguments that makes one and says so, "
            f"`def {name.rpartition('.')[2]}() -> Class`"
        )
    return target


def check_fits(target: Callable, slot: Slot) -> None:
    """Raise ValueError unless the result of `target` fits the annotation of the slot."""
    if slot.hint is Never:
        raise ValueError(f"{slot.path}=@{label(target)}() is in a tuple, where none can be")
    if not _fits(target, slot):
        instead = slot.remedy or in_a_tuple(slot.hint, made_by(target))
        raise ValueError(f"{slot.path}=@{label(target)}() must be {describe_hint(slot.hint)}{instead}")


def _fits(target: Callable, slot: Slot) -> bool:
    made = made_by(target)
    return made is not None and takes(slot.hint, made)


def find_target(name: str, slot: Slot, near: Iterable[type], imports: Imports) -> Callable:
    """Return the class or preset called `name`, for a slot.

    A short name is the end of a full name in the modules beside those of the classes `near`. A full name is imported.

    Raises:
        ValueError: there is none, with the nearest name, or where none is near those that fit; several have the short
            name; or it is no class or preset.
    """
    known = {f"{target.__module__}.{target.__qualname__}": target for target in _beside(near, imports)}
    matches = [full for full in known if f".{full}".endswith(f".{name}")]
    if len(matches) > 1:
        raise ValueError(f"@{name}() may be any of {', '.join(sorted(matches))}; write one in full")
    if matches:
        return known[matches[0]]
    module, _, attribute = name.rpartition(".")
    if module and all(map(str.isidentifier, name.split("."))):
        with contextlib.suppress(NoModuleError):
            found = vars(imports.module(module)).get(attribute)
            if found is not None:
                return checked_target(found, name)
    close = nearest(name.rpartition(".")[2], [target.__name__ for target in known.values()])
    fitting = sorted(target.__name__ for target in known.values() if _fits(target, slot))
    fits = f"; {slot.path} takes {', '.join(fitting) or describe_hint(slot.hint)}"
    raise ValueError(f"there is no class {name!r}{close or fits}")


def _beside(classes: Iterable[type], imports: Imports) -> list[Callable]:
    """Return the dataclasses and presets of the packages that `classes` are defined in."""
    modules = []
    for name in {cls.__module__ for cls in classes}:
        package, _, _ = name.rpartition(".")
        siblings = pkgutil.iter_modules(sys.modules[package].__path__) if package else ()
        modules += [name, *(f"{package}.{sibling.name}" for sibling in siblings if not sibling.name.startswith("_"))]
    return [target for name in dict.fromkeys(modules) for target in _targets(imports.module(name))]


def _targets(module: ModuleType) -> list[Callable]:
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    return [value for value in own if made_by(value) and not value.__name__.startswith("_")]
