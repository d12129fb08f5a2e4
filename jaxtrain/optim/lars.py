"""LARS, momentum with a rate for each layer. You et al. (2017), arXiv:1708.03888, algorithm 1.

A matrix w of a layer with gradient g has the rate r = rate * trust_coefficient |w| / (|g| + weight_decay |w|):
v <- momentum v + r (g + weight_decay w), w <- w - v. The norms are those of one matrix of one layer. Vectors (biases,
scales) have momentum at `rate` itself and no decay, and so has a matrix of zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtrain.axes import Axes
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.per_layer import per_layer
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LARS(Optimizer):
    """SGD with momentum and steps relative to the norm of each weight matrix, for large batches of images.

    The state has 4 bytes a parameter: the momentum.
    """

    learning_rate: Schedule
    momentum: float = 0.9
    trust_coefficient: float = 0.001
    weight_decay: float = 5e-4
    decays_in_direction: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1708.03888"

    def __post_init__(self):
        check_decay(self, "momentum")
        check_positive(self, "trust_coefficient")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def one(facts: Axes, gradient: Float[Array, "..."], weights: Float[Array, "..."]) -> Float[Array, "..."]:
            if not facts.decays:
                return gradient
            size, slope = optax.tree.norm(weights), optax.tree.norm(gradient)
            total = slope + self.weight_decay * size
            trusted = self.trust_coefficient * size / jnp.where(total > 0, total, 1.0)
            return jnp.where((size > 0) & (total > 0), trusted, 1.0) * (gradient + self.weight_decay * weights)

        scaled = optax.stateless(lambda gradients, params: jax.tree.map(one, axes, gradients, params))
        return optax.chain(per_layer(scaled, axes), optax.scale_by_learning_rate(rate), optax.trace(self.momentum))
