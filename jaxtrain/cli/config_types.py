"""Checks of values against the annotations of dataclass fields, and the texts of both in errors.

Supported are the annotations that configurations use: int, float, bool, str, None, Literal, unions, tuples, and
classes (nested dataclasses, their bases, Protocols). No value fits any other annotation.
"""

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Never, TypeAliasType, Union, get_args, get_origin

from jaxtrain.cli.config_literal import check_encodable
from jaxtrain.record.walk import label

PLAIN = (bool, int, float, str, NoneType)


def convert(value: object, hint: object) -> object:
    """Return `value` as the annotation `hint` has it: an int becomes a float, a list a tuple.

    Raises:
        TypeError: the value does not fit.
        ValueError: it is a text that no file can hold.
    """
    if isinstance(hint, TypeAliasType):
        return convert(value, hint.__value__)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _convert_union(value, arguments)
    if origin is tuple or hint is tuple:
        return _convert_tuple(value, arguments)
    if origin is Literal:
        fits = any(type(value) is type(option) and value == option for option in arguments)
    elif hint is float and type(value) is int:
        return float(value)
    elif hint in PLAIN or hint is None:
        fits = value is None if hint is None else type(value) is hint  # isinstance would take a bool for an int
        if fits and isinstance(value, str):
            check_encodable(value)
    else:
        fits = hint in (Any, object) or (is_dataclass(value) and takes(hint, type(value)))
    if not fits:
        raise TypeError
    return value


def fits(value: object, hint: object) -> bool:
    """Tell whether `convert` accepts a value."""
    try:
        convert(value, hint)
    except TypeError:
        return False
    return True


def _convert_union(value: object, options: tuple) -> object:
    for option in sorted(options, key=lambda option: option is not type(value)):  # 1 stays an int in `float | int`
        try:
            return convert(value, option)
        except TypeError:
            continue
    raise TypeError


def _convert_tuple(value: object, arguments: tuple) -> tuple:
    if not isinstance(value, tuple | list):
        raise TypeError
    if not arguments:
        return tuple(value)
    if arguments[-1] is Ellipsis:
        return tuple(convert(item, arguments[0]) for item in value)
    if len(value) != len(arguments):
        raise TypeError
    return tuple(convert(item, hint) for item, hint in zip(value, arguments, strict=True))


def takes(hint: object, cls: type) -> bool:
    """Tell whether an annotation accepts instances of a dataclass, without making one."""
    if isinstance(hint, TypeAliasType):
        return takes(hint.__value__, cls)
    if get_origin(hint) in (Union, UnionType):
        return any(takes(option, cls) for option in get_args(hint))
    kind = get_origin(hint) or hint
    if kind in (Any, object) or not isinstance(kind, type):
        return kind in (Any, object)
    try:
        return issubclass(cls, kind)
    except TypeError:  # a Protocol that is not checkable at run time
        # Every Protocol has it; the public typing.get_protocol_members is new in Python 3.13.
        return kind.__protocol_attrs__ <= set(dir(cls))  # type: ignore[attr-defined]


def item_hint(hint: object) -> object:
    """Return the annotation of a tuple's items. For a union of tuples it is a union, without a tuple it is Never."""
    if isinstance(hint, TypeAliasType):
        return item_hint(hint.__value__)
    origin, arguments = get_origin(hint), tuple(argument for argument in get_args(hint) if argument is not Ellipsis)
    if hint in (tuple, Any, object):
        return object
    if origin is tuple:
        return Union[arguments] if arguments else Never  # noqa: UP007  `|` cannot join a tuple of any length
    items = tuple(item for option in arguments if (item := item_hint(option)) is not Never)
    return Union[items] if items and origin in (Union, UnionType) else Never  # noqa: UP007


def classes_in(hint: object) -> list[type]:
    """Return the classes that an annotation names, without plain types."""
    if isinstance(hint, TypeAliasType):
        return classes_in(hint.__value__)
    if arguments := get_args(hint):
        return [cls for argument in arguments for cls in classes_in(argument)]
    return [hint] if isinstance(hint, type) and hint not in (*PLAIN, tuple, object) else []


def in_a_tuple(hint: object, cls: type | None) -> str:
    """Return what to write for one object where a tuple of such is asked for; nothing for any other annotation."""
    if cls is None or item_hint(hint) is object or not takes(item_hint(hint), cls):
        return ""
    return f"; write (@{label(cls)}(),)"


def describe_hint(hint: object) -> str:
    """Return an annotation as text, classes without their modules. An abstract base class is a union of its classes."""
    if isinstance(hint, TypeAliasType):
        return describe_hint(hint.__value__)
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(describe_hint, get_args(hint)))
    if hint is NoneType:
        return "None"
    if isinstance(hint, type) and inspect.isabstract(hint):
        return " | ".join(sorted(subclasses(hint))) or hint.__name__
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def subclasses(base: type) -> dict[str, type]:
    """Return the dataclasses among the final subclasses of an abstract base class, by name.

    The modules beside the base are imported first. Other subclasses are found where their module is imported already.
    """
    package = base.__module__.rpartition(".")[0]
    for entry in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.") if package else ():
        importlib.import_module(entry.name)
    found: dict[str, type] = {}
    known: list[type] = base.__subclasses__()
    for cls in known:
        if is_dataclass(cls) and not inspect.isabstract(cls):
            found[cls.__name__] = cls
        else:
            found |= subclasses(cls)
    return found
