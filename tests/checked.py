"""The run-time checker of the tests: functions that take or return arrays are checked, by jaxtyping and beartype.

Shapes and dtypes are checked together with all else that such a function is annotated with. Functions without arrays are
left to mypy.
"""

from typing import get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)  # as in type checkers

unchecked: set[str] = set()  # functions with arrays and with an annotation that beartype has no check for


def checked(function):
    """Return a function that checks its arguments and its result."""
    if not any(map(_has_arrays, function.__annotations__.values())):
        return function
    try:
        return beartype(conf=_INT_IS_FLOAT)(function)
    except BeartypeDecorHintException:
        unchecked.add(f"{function.__module__}.{function.__qualname__}")
        return function


def _has_arrays(hint: object) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_arrays, get_args(hint)))
