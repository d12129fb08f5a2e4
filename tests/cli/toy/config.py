from dataclasses import dataclass

from toy.layers import ModelConfig
from toy.optim.adam import Adam
from toy.optim.base import Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    steps: int
    length: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    model: ModelConfig
    phases: tuple[Phase, ...]
    optimizer: Optimizer = Adam()
    name: str = "run"
    note: str | None = None
    clip: float | None = 1.0
    seeds: tuple[int, ...] = (0,)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)
