"""ADOPT, Adam that converges with any b2. Taniguchi et al. (2024), arXiv:2411.02853, algorithm 2.

A gradient is divided by the second moment of the gradients before it, clipped to t^(1/4), and then averaged. The first
gradient only begins the second moment. Deviation: weights decay in the first step as well.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ADOPT(Optimizer):
    """Adam that divides by the second moment before it averages, so that b2 needs no tuning.

    The state has 8 bytes a parameter, as Adam's.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.9999
    epsilon: float = 1e-6
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:2411.02853"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.chain(
            optax.contrib.scale_by_adopt(self.b1, self.b2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )
