"""LAMB, Adam whose update of a layer has the norm of its weights. You et al. (2019), arXiv:1904.00962, algorithm 2.

A matrix w moves along u = Adam's direction + weight_decay w, by rate |w|: w <- w - rate |w| u / |u|. The norm is that
of one matrix of one layer. As in the authors' code, vectors (biases, scales) take Adam's step, and so does a matrix of
zeros. Left out: bounds on |w|, which the paper allows for and sets nowhere.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.per_layer import per_layer
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LAMB(Optimizer):
    """Adam with steps relative to the norm of each weight matrix, for large batches."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    decays_in_direction: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1904.00962"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    @property
    def momentum_key(self) -> str:
        return "b1"

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            per_layer(optax.masked(optax.scale_by_trust_ratio(), decays(axes)), axes),
            optax.scale_by_learning_rate(rate),
        )
