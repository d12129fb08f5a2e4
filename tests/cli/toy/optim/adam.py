from dataclasses import dataclass

from toy.optim.base import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Schedule):
    value: float = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    schedule: Schedule = Constant()
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self) -> str:
        return "adam"
