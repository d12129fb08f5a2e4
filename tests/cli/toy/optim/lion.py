from dataclasses import dataclass

from toy.optim.adam import Constant
from toy.optim.base import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Lion:
    schedule: Schedule = Constant()
    b1: float = 0.9

    def build(self) -> str:
        return "lion"
