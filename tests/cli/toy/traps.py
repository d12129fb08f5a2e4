"""Functions and classes that note when they are called, for what must not be."""

from dataclasses import dataclass, field

from toy.config import Phase
from toy.layers import ModelConfig, NormConfig

CALLED: list[str] = []


def _note(name: str) -> int:
    CALLED.append(name)
    return 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trap:
    value: int = field(default_factory=lambda: _note("default of a Trap"))


class Callable:
    def __call__(self) -> ModelConfig:
        _note("callable object")


def unannotated():
    _note("unannotated")


def plain() -> int:
    _note("plain")


def of_another_kind() -> Phase:
    _note("of another kind")


def with_default(width: int = 3) -> ModelConfig:
    _note("with a default")


def unresolved() -> "Missing":
    _note("unresolved")


def lying() -> ModelConfig:
    return NormConfig()


def annotated_in_text() -> "ModelConfig":
    return ModelConfig(d_model=3)


callable_object = Callable()
