from typing import Protocol


class Optimizer(Protocol):
    def build(self) -> str: ...


class Schedule:
    """A base class, not a dataclass itself."""

    __slots__ = ()
