"""AdamW. Loshchilov and Hutter (2019), arXiv:1711.05101."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:1711.05101"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    @property
    def momentum_key(self) -> str:
        return "b1"

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.adamw(
            rate, b1=self.b1, b2=self.b2, eps=self.epsilon, weight_decay=self.weight_decay, mask=decays(axes)
        )
