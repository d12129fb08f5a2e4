"""What a key of a configuration takes: the subclasses of its base class, or its plain type, and its default.

Annotations alone are read, and no configuration. So a key below one that takes several classes, such as `optimizer.b1`,
is found in every class that has it.
"""

import inspect
import re
from dataclasses import MISSING, Field, is_dataclass
from typing import NamedTuple, get_type_hints

from jaxtrain.cli.config_names import either, spelled_like, synonyms
from jaxtrain.cli.config_types import classes_in, describe_hint, subclasses
from jaxtrain.record.walk import config_fields, describe, join, label
from jaxtrain.technique import Technique


class Key(NamedTuple):
    """A key as one class has it."""

    cls: type
    name: str
    hint: object
    field: Field

    @property
    def default(self) -> str:
        if self.field.default is not MISSING:
            return describe(self.field.default)
        return "required" if self.field.default_factory is MISSING else describe(self.field.default_factory())

    @property
    def classes(self) -> list[type]:
        return options(self.hint)


def options(hint: object) -> list[type]:
    """Return the dataclasses that an annotation takes. The base class of techniques stands for its final subclasses."""
    found: dict[type, None] = {}
    for cls in classes_in(hint):
        if is_dataclass(cls):
            found[cls] = None
        elif issubclass(cls, Technique):
            found |= dict.fromkeys(option for _, option in sorted(subclasses(cls).items()))
    return list(found)


def keys_of(cls: type) -> list[Key]:
    hints = get_type_hints(cls)
    return [Key(cls, name, hints[name], field) for name, field in config_fields(cls).items()]


def keys_below(classes: list[type], name: str, at: str = "") -> list[tuple[str, Key]]:
    """Return the keys that a name stands for, with their paths, where they are nearest below some classes."""
    level, seen = [(at, cls) for cls in classes], set(classes)
    while level:
        known = [(join(above, key.name), key) for above, cls in level for key in keys_of(cls)]
        names = synonyms(name, [key.name for _, key in known])
        if found := [(path, key) for path, key in known if key.name in names]:
            return found
        level = [(path, cls) for path, key in known for cls in key.classes if cls not in seen]
        seen.update(cls for _, cls in level)
    return []


def find_keys(root: type, path: str) -> list[Key]:
    """Return the keys at a path, one for every class that has it. Indices of tuples may be left out.

    Raises:
        ValueError: there is no such path, with the nearest name.
    """
    names, classes, at = re.sub(r"\[[0-9]+\]|\.[0-9]+(?=\.|$)", "", path).split("."), [root], ""
    for name in names:
        known = [key for cls in classes for key in keys_of(cls)]
        found = [key for key in known if key.name == name]
        if not found and not known:
            raise ValueError(f"{at} takes plain values, there is no {name!r} below it")
        if not found:
            where = f"{at} has" if at else f"{label(root)} has"
            below = list(dict.fromkeys(found for found, _ in keys_below(classes, name, at)))
            near = [join(at, close) for close in spelled_like(name, [key.name for key in known])]
            raise ValueError(f"{where} no key {name!r}{either(below or near)}")
        at, classes = join(at, name), list(dict.fromkeys(cls for key in found for cls in key.classes))
    return found


def summary(cls: type) -> str:
    """Return the first line of a class's docstring, or "" for one that `dataclass` generated."""
    line = (inspect.getdoc(cls) or "").partition("\n")[0]
    return "" if line.startswith(f"{cls.__name__}(") else line


def paper(cls: type) -> str:
    return cls.paper if issubclass(cls, Technique) else ""


def describe_options(path: str | None) -> str:
    """Return the description of what the key at a path takes. Without a path, return the keys of a configuration."""
    from jaxtrain.config import TrainConfig  # imported here, because it imports everything that a run may use

    if path is None:
        return "\n".join(_key_rows(keys_of(TrainConfig), ""))
    found = find_keys(TrainConfig, path)
    classes = list(dict.fromkeys(cls for key in found for cls in key.classes))
    lines = _key_rows(found, path)
    lines += ["", *_columns([(f"@{label(cls)}()", cls.__module__, summary(cls), paper(cls)) for cls in classes])]
    if len(classes) == 1:
        lines += ["", *_key_rows(keys_of(classes[0]), path)]
    return "\n".join(lines).rstrip()


def _key_rows(keys: list[Key], path: str) -> list[str]:
    """Return one line for each key: its class and name, its type, and its default."""
    return _columns([(f"{label(key.cls)}.{key.name}", _base(key.hint), key.default) for key in keys])


def _base(hint: object) -> str:
    """Return an annotation as text, in which an abstract base class has its own name and not its subclasses'."""
    bases = [cls for cls in classes_in(hint) if inspect.isabstract(cls)]
    if not bases:
        return describe_hint(hint)
    text = str(hint) if not isinstance(hint, type) else hint.__name__
    return re.sub(r"[\w.]+\.(\w+)", r"\1", text)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
