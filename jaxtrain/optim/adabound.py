"""AdaBound, from Adam's steps to those of SGD. Luo et al. (2019), arXiv:1902.09843, algorithm 2.

The rate of an element, rate / (sqrt(v) + epsilon) with Adam's corrections of bias, is clipped to between
f (1 - 1 / (gamma t + 1)) and f (1 + 1 / (gamma t)), and then multiplies the momentum. So steps end as those of SGD
with the rate f. As in the authors' code f follows the schedule: it is `final_factor` times the rate. (The paper's f of
0.1 is 100 times its rate.)
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


class AdaBoundState(NamedTuple):
    """The moments, and the largest second moments so far; () without `amsbound`."""

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count; optax and checkpoints have this name
    m: dict
    v: dict
    largest: dict | tuple


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaBound(Optimizer):
    """Adam in the beginning and SGD in the end. With `amsbound` second moments do not fall.

    The state has 8 bytes a parameter, and 12 with `amsbound`.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    gamma: float = 1e-3
    final_factor: float = 100.0
    amsbound: bool = False
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    paper: ClassVar[str] = "arXiv:1902.09843"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "gamma", "final_factor", "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def init(params: dict) -> AdaBoundState:
            m, v, largest = (optax.tree.zeros_like(params) for _ in range(3))
            return AdaBoundState(jnp.zeros((), jnp.int32), m, v, largest if self.amsbound else ())

        def update(gradients: dict, state: AdaBoundState, params: dict | None = None) -> tuple[dict, AdaBoundState]:
            step, now = optax.safe_increment(state.count), rate(state.count)
            m = optax.tree.update_moment(gradients, state.m, self.b1, 1)
            v = optax.tree.update_moment_per_elem_norm(gradients, state.v, self.b2, 2)
            largest = jax.tree.map(jnp.maximum, state.largest, v) if self.amsbound else ()
            squares = optax.tree.bias_correction(largest if self.amsbound else v, self.b2, step)
            low, high = self.bounds(step, now)

            def one(m: Float[Array, "..."], square: Float[Array, "..."]) -> Float[Array, "..."]:
                own = now / (1 - self.b1**step) / (jnp.sqrt(square) + self.epsilon)
                return -jnp.clip(own, low, high) * m

            return jax.tree.map(one, m, squares), AdaBoundState(step, m, v, largest)

        decay = optax.add_decayed_weights(lambda count: -self.weight_decay * rate(count), mask=decays(axes))
        return optax.chain(optax.GradientTransformation(init, update), decay)

    def bounds(
        self, step: Int[Array, ""] | int, rate: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""] | float, ...]:
        """Return the least and the largest rate of an element in a step, counted from 1."""
        final = self.final_factor * rate
        return final * (1 - 1 / (self.gamma * step + 1)), final * (1 + 1 / (self.gamma * step))
