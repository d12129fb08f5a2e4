"""Lion, the sign of an interpolated momentum. Chen et al. (2023), arXiv:2302.06675."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative


@dataclass(frozen=True, kw_only=True, slots=True)
class Lion(Optimizer):
    """Has half the state of AdamW; needs a rate 3 to 10 times smaller, and a decay as much larger."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0
    paper: ClassVar[str] = "arXiv:2302.06675"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_not_negative(self, "weight_decay")

    @property
    def momentum_key(self) -> str:
        return "b1"

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.lion(rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay, mask=decays(axes))
