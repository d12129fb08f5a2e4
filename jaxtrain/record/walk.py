"""The parts of a built configuration by their paths, and what they are called."""

from collections.abc import Callable, Iterable
from dataclasses import Field, fields, is_dataclass


def config_fields(cls: type) -> dict[str, Field]:
    return {field.name: field for field in fields(cls) if field.init}


def join(path: str, key: str | int) -> str:
    """Return the path of a child: `phases[0]` for an index, `model.d_model` for a name."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def entries(config: object, path: str = "") -> Iterable[tuple[str, object]]:
    """Yield (path, class) for every dataclass and (path, value) for every leaf of a built configuration.

    The order is that of the fields.
    """
    if is_dataclass(config):
        yield path, type(config)
        for name in config_fields(type(config)):
            yield from entries(getattr(config, name), join(path, name))
    elif isinstance(config, tuple) and any(is_dataclass(item) for item in config):
        for i, item in enumerate(config):
            yield from entries(item, join(path, i))
    else:
        yield path, config


def label(target: Callable) -> str:
    """Return the name of a class or preset in configurations: the last part of its module, and its own name."""
    return f"{target.__module__.rpartition('.')[2]}.{target.__qualname__}"


def describe(value: object) -> str:
    """Return a value as configurations write it."""
    if is_dataclass(value):
        return f"@{label(value if isinstance(value, type) else type(value))}()"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
