"""One damaged input, and what it may not do."""

from collections.abc import Callable
from typing import NamedTuple


class Case(NamedTuple):
    """`attempt` takes an input in as the commands do; `fault` says what is silently wrong in what came of it, or None.

    A refusal must hold one of `names`: the file, the key or the text that is at fault.
    """

    kind: str
    what: str
    attempt: Callable[[], object]
    fault: Callable[[object], str | None]
    names: tuple[str, ...]
    valid: bool = False  # nothing was damaged: a refusal is a fault
