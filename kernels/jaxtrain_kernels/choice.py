"""Which implementation of an operation runs a call.

An operation lists its implementations in order of preference. If the caller names none, the first *proven* one that
takes the call runs. Proven means that it has run on the hardware it is written for, with its row in docs/benchmarks.md.
A named implementation runs or refuses; there is no fallback. If all refuse, one error gives the reasons of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Reasons = Callable[..., Sequence[str]]


def takes_all(*_: Any, **__: Any) -> Sequence[str]:
    """Return no reason to refuse, for any call."""
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """One way to compute an operation: `refuses` gets the call's arguments and returns why it cannot run them."""

    name: str
    run: Callable[..., Any]
    refuses: Reasons = takes_all
    proven: bool = True


def check_named(operation: str, implementations: Sequence[Implementation], named: str | None) -> None:
    """Raise ValueError if `named` is neither None nor the name of an implementation."""
    names = [implementation.name for implementation in implementations]
    if named is not None and named not in names:
        raise ValueError(f"implementation={named!r}: {operation} has {', '.join(names)}")


def choose(
    operation: str, implementations: Sequence[Implementation], named: str | None, *arguments: Any, **options: Any
) -> Implementation:
    """Return the implementation that runs `operation` with these arguments.

    Raises:
        ValueError: `named` is not the name of an implementation.
        NotImplementedError: the named one, or every one, refuses the call.
    """
    check_named(operation, implementations, named)
    tried = [one for one in implementations if one.name == named or (named is None and one.proven)]
    refusals = []
    for implementation in tried:
        if not (reasons := implementation.refuses(*arguments, **options)):
            return implementation
        refusals.append(f"{implementation.name}: {', '.join(reasons)}")
    raise NotImplementedError(f"{operation}: no implementation takes this call. {'; '.join(refusals)}")
