"""MADGRAD, dual averaging from the first weights. Defazio and Jelassi (2021), arXiv:2101.11075, algorithm 1.

With l = rate sqrt(t), sums s of l g and v of l g^2 lead to z = w_0 - s / (v^(1/3) + epsilon), and the weights follow z:
w <- momentum w + (1 - momentum) z. As in the authors' code, epsilon is also added to a rate that is not 0. Decay is
their `decouple_decay`: the weights lose rate * weight_decay of themselves, while z stays where it is, so that a weight
without gradient does not go to 0 but settles between both.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class MADGRAD(Optimizer):
    """Sums gradients and squares with growing weights, and divides by cube roots; for sparse gradients and small noise.

    The state has 12 bytes a parameter: both sums and the first weights.
    """

    learning_rate: Schedule
    momentum: float = 0.9
    epsilon: float = 1e-6
    weight_decay: float = 0.0
    paper: ClassVar[str] = "arXiv:2101.11075"

    def __post_init__(self):
        check_decay(self, "momentum")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    @property
    def anchored(self) -> bool:
        return True

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def summed_rate(count):
            """Return the rate to which optax adds epsilon: less by that where it is 0, as in a warm-up's first step."""
            return jnp.where(rate(count) > 0, rate(count), -self.epsilon)

        return optax.chain(
            optax.contrib.scale_by_madgrad(summed_rate, self.momentum, self.epsilon),
            optax.add_decayed_weights(lambda count: -self.weight_decay * rate(count), mask=decays(axes)),
        )
