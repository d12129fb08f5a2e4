"""Adafactor, second moments factored into rows and columns. Shazeer and Stern (2018), arXiv:1804.04235.

This is optax's transformation, on each layer's parameters as matrices. A projection to heads is the matrix embed x
(heads and head_dim), which is factored whatever the head dimension is.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import optax

from jaxtrain.axes import Axes
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays, matrix_shape
from jaxtrain.optim.per_layer import per_layer
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_not_negative, check_positive

SMALLEST_SIDE = 128  # a matrix with a shorter side keeps its second moments whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Adafactor(Optimizer):
    """Keeps a few numbers for each row and column, not two a weight; the rate is relative to a layer's weights."""

    learning_rate: Schedule
    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    weight_decay: float = 0.0
    paper: ClassVar[str] = "arXiv:1804.04235"

    def __post_init__(self):
        check_positive(self, "decay_rate", "clipping_threshold")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        factored = optax.adafactor(
            rate,
            min_dim_size_to_factor=SMALLEST_SIDE,
            decay_rate=self.decay_rate,
            clipping_threshold=self.clipping_threshold,
            weight_decay_rate=None,
        )
        # optax.adafactor does not multiply its weight decay by the learning rate, as the other optimizers do.
        decay = optax.add_decayed_weights(lambda count: -self.weight_decay * rate(count), mask=decays(axes))
        return optax.chain(per_layer(_of_matrices(factored, axes), axes), decay)


def _of_matrices(tx: optax.GradientTransformation, axes: dict) -> optax.GradientTransformation:
    """Return `tx` for the parameters of one layer, with those reshaped to matrices whose second moments it factors."""

    def flat(tree: dict) -> dict:
        def one(facts: Axes, x: jax.Array) -> jax.Array:
            shape = matrix_shape(facts, x.shape)
            # A parameter that is not factored keeps its shape, so that its moments have it, too, and are sharded alike.
            return x.reshape(shape) if len(shape) == 2 and min(shape) >= SMALLEST_SIDE else x

        return jax.tree.map(one, axes, tree)

    def init(params: dict) -> optax.OptState:
        return tx.init(flat(params))

    def update(gradients: dict, state: optax.OptState, params: dict) -> tuple[dict, optax.OptState]:
        updates, state = tx.update(flat(gradients), state, flat(params))
        return jax.tree.map(lambda update, like: update.reshape(like.shape), updates, gradients), state

    return optax.GradientTransformation(init, update)
