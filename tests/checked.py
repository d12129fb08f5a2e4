"""The run-time checker of the tests: functions that take or return arrays are checked, by jaxtyping and beartype.

Shapes and dtypes are checked together with all other annotations of such a function. An array may also be NumPy's, as
in JAX itself. Functions without arrays are left to mypy, and stay as they are: jaxtyping's decorator would check
nothing of them, and take ten times their own time.
"""

import contextlib
import inspect
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)  # as in type checkers

unchecked: set[str] = set()  # functions with arrays and with an annotation that beartype has no check for
_jaxtyped = jaxtyping.jaxtyped


def install(*packages: str) -> None:
    """Check the functions of packages that are not yet imported."""
    jaxtyping.jaxtyped = _where_arrays_are  # the import hook writes this name above every function and class
    jaxtyping.install_import_hook(packages, "checked.checked")


def _where_arrays_are(*, typechecker):
    """jaxtyping's decorator, but for what `checked` returns as it is."""
    return lambda own: _jaxtyped(own, typechecker=typechecker) if _is_checked(own) else own


def _is_checked(own: Any) -> bool:
    if isinstance(own, classmethod | staticmethod):
        return _is_checked(own.__func__)
    if isinstance(own, property):
        return any(_is_checked(part) for part in (own.fget, own.fset, own.fdel) if part)
    if inspect.isclass(own) or own.__name__ == "__init__":
        return False
    return any(isinstance(hint, str) or _has_arrays(hint) for hint in own.__annotations__.values())


def checked(function):
    """Return a function that checks its arguments and its result."""
    is_container = function.__name__ == "__init__"  # a dataclass in a tree also holds shapes, specs and the like
    if is_container or not any(map(_has_arrays, function.__annotations__.values())):
        return function
    function.__annotations__ = {name: _or_numpy(hint) for name, hint in function.__annotations__.items()}
    try:
        return beartype(conf=_INT_IS_FLOAT)(function)
    except BeartypeDecorHintException:
        unchecked.add(f"{function.__module__}.{function.__qualname__}")
        return function


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Check nothing inside, so that wrong arguments reach the function and its own message is seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _has_arrays(hint: Any) -> bool:
    return _is_array(hint) or any(map(_has_arrays, get_args(hint)))


def _or_numpy(hint: Any) -> Any:
    if hint is jax.Array:  # says nothing of a shape, and JAX hands literals on as they are
        return Any
    if _is_array(hint):
        return hint.dtype[hint.array_type | np.ndarray, hint.dim_str]
    if not _has_arrays(hint):
        return hint
    origin, arguments = get_origin(hint), tuple(map(_or_numpy, get_args(hint)))
    return Union[arguments] if origin in (Union, types.UnionType) else origin[arguments]  # noqa: UP007
