"""Signum, the sign of a momentum. Bernstein et al. (2018), arXiv:1802.04434, algorithm 2."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative


@dataclass(frozen=True, kw_only=True, slots=True)
class Signum(Optimizer):
    """Moves every weight by the rate, against the sign of the averaged gradient; `momentum` 0 is signSGD.

    The state has 4 bytes a parameter: the momentum. As with Lion, the rate is 3 to 10 times smaller than AdamW's.
    """

    learning_rate: Schedule
    momentum: float = 0.9
    weight_decay: float = 1.0
    paper: ClassVar[str] = "arXiv:1802.04434"

    def __post_init__(self):
        check_decay(self, "momentum")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.chain(
            optax.ema(self.momentum, debias=False),
            optax.scale_by_sign(),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )
