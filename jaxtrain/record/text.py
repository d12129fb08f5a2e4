"""A built configuration as text: a file that reproduces it, and differences from another."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import MappingProxyType
from typing import NamedTuple

from jaxtrain.record.literal import check_number
from jaxtrain.record.walk import config_fields, describe, entries, join


def render(config: object, instead: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a gin file with every key of `config`, from which `load` makes an equal configuration.

    `instead` has values to write in place of the configuration's own, by path.

    Raises:
        ValueError: a class is local to a function or a value has no literal, so that no file can name it.
    """
    nodes = {path: value for path, value in entries(config) if isinstance(value, type)}
    modules = _module_names(nodes)
    counts = Counter(nodes.values())
    names = {}
    for path, cls in nodes.items():
        scope = path.replace(".", "/").replace("[", "_").replace("]", "") if counts[cls] > 1 and path else ""
        names[path] = f"{scope}{'/' if scope else ''}{modules[cls.__module__][0]}.{cls.__qualname__}"
    imports = sorted(statement for _, statement in modules.values())
    head = ["# Every key of a run, written by jaxtrain. It alone makes the same configuration.", ""]
    head += ["from __gin__ import dynamic_registration", *imports]
    return "\n".join(head) + "\n" + "".join(_sections(config, "", names, instead))


def _module_names(nodes: dict[str, type]) -> dict[str, tuple[str, str]]:
    """Return the shortest unique name of every module, and the statement that imports it under that name."""
    for path, cls in nodes.items():
        if "<locals>" in cls.__qualname__:
            raise ValueError(f"{path or cls.__name__}: {cls.__qualname__} is local to a function; move it to a module")
    modules = sorted({cls.__module__ for cls in nodes.values()})
    taken = Counter([*(module.rpartition(".")[2] for module in modules), "gin"])
    names = {}
    for module in modules:
        package, _, last = module.rpartition(".")
        name = last if taken[last] == 1 else module.replace(".", "_")
        statement = f"from {package} import {last}" if package else f"import {last}"
        names[module] = (name, statement if name == last else f"{statement} as {name}")
    return names


def _sections(value: object, path: str, names: dict[str, str], instead: Mapping[str, str]) -> Iterator[str]:
    """Yield one block of text for each dataclass, parents before children."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _sections(item, join(path, i), names, instead)
    if not is_dataclass(value):
        return
    fields = {name: getattr(value, name) for name in config_fields(type(value))}
    written = {name: instead.get(join(path, name), field) for name, field in fields.items()}
    lines = [f"  {name} = {_literal(field, join(path, name), names)}" for name, field in written.items()]
    if lines:
        yield "\n".join(["", *([f"# {path}"] if path else []), f"{names[path]}:", *lines, ""])
    for name, field in fields.items():
        yield from _sections(field, join(path, name), names, instead)


def _literal(value: object, path: str, names: dict[str, str]) -> str:
    if is_dataclass(value):
        return f"@{names[path]}()"
    if isinstance(value, tuple):
        items = [_literal(item, join(path, i), names) for i, item in enumerate(value)]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if type(value) not in (bool, int, float, str, type(None)):
        raise ValueError(f"{path}={value!r} has no literal; use int, float, bool, str, None or tuples of these")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_written(value, path)
    return repr(value)


def _check_written(value: float, path: str) -> None:
    """Raise ValueError for a number with which the file could not be read again."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}={value!r} has no literal; use a finite number")
    try:
        check_number(str(abs(value)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class Difference(NamedTuple):
    """A path whose value differs. A side without the path has None."""

    path: str
    left: str | None
    right: str | None

    def __str__(self) -> str:
        return f"{self.path}: {self.left or '(absent)'} -> {self.right or '(absent)'}"


def diff(left: object, right: object) -> list[Difference]:
    """Return the paths at which two configurations have different values or classes."""
    a, b = dict(entries(left)), dict(entries(right))
    absent = object()
    changed = [path for path in a | b if a.get(path, absent) != b.get(path, absent)]
    return [Difference(path, *(describe(side[path]) if path in side else None for side in (a, b))) for path in changed]
