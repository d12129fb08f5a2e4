"""Adam-mini, one second moment for each block of weights. Zhang et al. (2024), arXiv:2406.16793.

The second moment of a block is the average of its mean square gradient. Blocks are: in tables and the head, what
belongs to one token; in projections to queries and keys, a head; in other matrices, what leads to one output. As in
version 1.1.1 of the authors' package, a bias keeps Adam's moments, and another vector is one block. All that is of each
layer, and of each expert. Queries and keys are known by their names, as there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays, sides
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive

BY_HEAD = {"query", "key"}  # projections whose heads are blocks
HEADS = {"heads", "kv_heads"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamMini(Optimizer):
    """AdamW with half of its state: a second moment for each head, output or token instead of each weight.

    The state has 4 bytes a parameter: the momentum.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:2406.16793"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def mean_squares(gradients: dict) -> dict:
            def one(path: tuple, facts: Axes, g: Float[Array, "..."]) -> Float[Array, "..."]:
                return jnp.mean(jnp.square(g), axis=within_block(path, facts), keepdims=True)

            return jax.tree_util.tree_map_with_path(one, axes, gradients)

        def init(params: dict) -> optax.ScaleByAdamState:
            m = optax.tree.zeros_like(params)
            return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), m, mean_squares(m))

        def update(gradients: dict, state: optax.ScaleByAdamState, params: dict | None = None) -> tuple:
            step = optax.safe_increment(state.count)
            m = optax.tree.update_moment(gradients, state.mu, self.b1, 1)
            v = optax.tree.update_moment(mean_squares(gradients), state.nu, self.b2, 1)
            momentum, squares = (
                optax.tree.bias_correction(m, self.b1, step),
                optax.tree.bias_correction(v, self.b2, step),
            )
            direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + self.epsilon), momentum, squares)
            return direction, optax.ScaleByAdamState(step, m, v)

        return optax.chain(
            optax.GradientTransformation(init, update),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )


def within_block(path: tuple, axes: Axes) -> tuple[int, ...]:
    """Return the axes of a parameter over which a block extends."""
    inner: Iterable[int]
    names, keys = axes.names[axes.leading :], {getattr(key, "key", None) for key in path}
    if axes.kind is Kind.VECTOR:
        inner = () if "bias" in keys else range(len(names))
    elif "vocab" in names:
        inner = (axis for axis, name in enumerate(names) if name != "vocab")
    elif keys & BY_HEAD and HEADS & set(names):
        inner = (axis for axis, name in enumerate(names) if name not in HEADS)
    else:
        inner = (axis for side in sides(axes)[:-1] for axis in side)
    return tuple(axes.leading + axis for axis in inner)
