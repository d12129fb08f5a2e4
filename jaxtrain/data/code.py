"""A text that changes when the code of a class does, so that a cache notices a method that was edited.

It is made of the byte code that runs: the text of a file may have been edited since it was imported. It covers the
methods of the class and of its bases, and all of its own module that they name: functions, classes and constants. What
they name of other modules is left out. Another version of Python has other byte code.
"""

import functools
import inspect
import re
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType


@functools.cache  # as it is before anything has run: a module may keep what it has computed in its variables
def code_of(cls: type) -> str:
    """Return the text."""
    found: dict[str, str] = {}
    waiting: list[type | FunctionType] = [base for base in cls.__mro__ if base.__module__ != "builtins"]
    while waiting:
        item = waiting.pop()
        name = f"{item.__module__}.{item.__qualname__}"
        if name in found:
            continue
        functions = [item] if isinstance(item, FunctionType) else list(_functions(item))
        lines = [_function_text(function) for function in functions]
        if isinstance(item, type):
            lines += [f"{key}={_text(value)}" for key, value in vars(item).items() if not key.startswith("__")]
        for function in functions:
            for key in _names(function.__code__) & function.__globals__.keys():
                value = function.__globals__[key]
                value = inspect.unwrap(value) if callable(value) else value  # from a cache, say
                if isinstance(value, type | FunctionType):
                    waiting += [value] if value.__module__ == cls.__module__ else []
                else:
                    lines.append(f"{key}={_text(value)}")
        found[name] = "\n".join(sorted(lines))
    return "\n".join(f"{name}: {text}" for name, text in sorted(found.items()))


def _functions(cls: type) -> Iterator[FunctionType]:
    """Yield the functions of a class: methods, class and static methods, and those of properties."""
    for value in vars(cls).values():
        parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
        for part in parts:
            part = part.func if isinstance(part, functools.cached_property) else getattr(part, "__func__", part)
            part = inspect.unwrap(part) if callable(part) else part
            if isinstance(part, FunctionType):
                yield part


def _function_text(function: FunctionType) -> str:
    """Return a text of the code of a function without its docstring, of its defaults and of what it closes over."""
    code = function.__code__
    if function.__doc__ and code.co_consts[0] == function.__doc__:
        code = code.replace(co_consts=(None, *code.co_consts[1:]))
    return _text((code, function.__defaults__, function.__kwdefaults__, function.__closure__))


def _names(code: CodeType) -> set[str]:
    """Return the names that a code looks up, also those of functions inside it."""
    inner = [_names(value) for value in code.co_consts if isinstance(value, CodeType)]
    return set(code.co_names).union(*inner)


def _text(value: object) -> str:
    """Return a text of a code or of a constant, the same in every process. Other objects are their kind alone."""
    match value:
        case CodeType():
            parts = (value.co_code, value.co_exceptiontable, value.co_names, value.co_consts)
            return f"{value.co_name} {_text(parts)}"
        case str() | bytes() | int() | float() | complex() | None:
            return repr(value)
        case tuple() | list():
            return f"[{', '.join(map(_text, value))}]"
        case CellType():
            try:
                return _text(value.cell_contents)
            except ValueError:  # it is empty
                return ""
        case set() | frozenset():
            return f"{{{', '.join(sorted(map(_text, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{_text(key)}: {_text(item)}' for key, item in value.items())}}}"
        case re.Pattern():
            return f"{value.pattern!r} {value.flags}"
    return type(value).__qualname__
