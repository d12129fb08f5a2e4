"""The run-time checker of annotations in the tests: shapes and dtypes by jaxtyping, all else by beartype."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_INT_IS_FLOAT = BeartypeConf(is_pep484_tower=True)  # as in type checkers

unchecked: set[str] = set()  # functions with an annotation that beartype has no check for


def checked(function):
    """Return a function that checks its arguments and its result."""
    try:
        return beartype(conf=_INT_IS_FLOAT)(function)
    except BeartypeDecorHintException:
        unchecked.add(f"{function.__module__}.{function.__qualname__}")
        return function
