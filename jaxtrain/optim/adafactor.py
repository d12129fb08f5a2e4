"""Adafactor, second moments factored into rows and columns. Shazeer and Stern (2018), arXiv:1804.04235.

optax's transformation on the matrix that each layer's parameter is: a projection by heads is embed x (heads and
head_dim), which factors whatever the head dimension.
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
    """A few numbers a row and column in place of AdamW's two a weight. The rate is relative to a layer's weights."""

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
        # The decay that optax offers here is not multiplied by the learning rate; that of the others is.
        decay = optax.add_decayed_weights(lambda count: -self.weight_decay * rate(count), mask=decays(axes))
        return optax.chain(per_layer(_of_matrices(factored, axes), axes), decay)


def _of_matrices(tx: optax.GradientTransformation, axes: dict) -> optax.GradientTransformation:
    """Return `tx`, which sees as matrices those parameters of one layer whose second moments it is to factor."""

    def flat(tree: dict) -> dict:
        def one(own: Axes, x: jax.Array) -> jax.Array:
            shape = matrix_shape(own, x.shape)
            # What is not factored keeps its shape, by which its moments are laid out like it.
            return x.reshape(shape) if len(shape) == 2 and min(shape) >= SMALLEST_SIDE else x

        return jax.tree.map(one, axes, tree)

    def init(params: dict) -> optax.OptState:
        return tx.init(flat(params))

    def update(gradients: dict, state: optax.OptState, params: dict) -> tuple[dict, optax.OptState]:
        updates, state = tx.update(flat(gradients), state, flat(params))
        return jax.tree.map(lambda update, like: update.reshape(like.shape), updates, gradients), state

    return optax.GradientTransformation(init, update)
