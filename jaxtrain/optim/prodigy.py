"""Prodigy, a faster D-Adaptation. Mishchenko and Defazio (2023), arXiv:2306.06101, its version for Adam.

Finds d, a lower bound of the distance (in the largest element) from the first weights w_0 to the best ones, and steps
by d times the rate. With weights c = d^2 rate / d0 and both sums fading by sqrt(b2), d grows to
d_coef sum(c <g, w_0 - w>) / |sum(c g)|_1. As in the authors' code, d stays where it is while the denominator is 0: in
steps of rate 0. Moments are those of d g, without corrections of bias, as there by default. optax.contrib.prodigy
divides 0 by 0 after a step of rate 0, with which every warm-up here begins.

All parameters have one d, so the step of a layer depends on the other layers.
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


class ProdigyState(NamedTuple):
    """The moments, the weighted sum of gradients and the first weights; d and what it is found from."""

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count; optax and checkpoints have this name
    m: dict
    v: dict
    total: dict
    first: dict
    d: Float[Array, ""]
    numerator: Float[Array, ""]
    used_rate: Float[Array, ""]  # of the last update


@dataclass(frozen=True, kw_only=True, slots=True)
class Prodigy(Optimizer):
    """Adam that finds its learning rate; `learning_rate` is a factor of it, with a peak of 1.

    The state has 16 bytes a parameter: the moments, the weighted sum of gradients and the first weights.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    d0: float = 1e-6
    d_coef: float = 1.0
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    paper: ClassVar[str] = "arXiv:2306.06101"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "d0", "d_coef", "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def init(params: dict) -> ProdigyState:
            m, v, total = (optax.tree.zeros_like(params) for _ in range(3))
            zero = jnp.zeros((), jnp.float32)
            first = jax.tree.map(jnp.copy, params)  # the step may overwrite the parameters
            return ProdigyState(jnp.zeros((), jnp.int32), m, v, total, first, zero + self.d0, zero, zero)

        def update(gradients: dict, state: ProdigyState, params: dict) -> tuple[dict, ProdigyState]:
            d, fade, used = state.d, self.b2**0.5, state.d * rate(state.count)

            def average(b: float, own, old: dict, power: int = 1) -> dict:
                return jax.tree.map(lambda g, x: (b * x + own * g**power).astype(x.dtype), gradients, old)

            m = average(self.b1, (1 - self.b1) * d, state.m)
            v = average(self.b2, (1 - self.b2) * d**2, state.v, power=2)
            total = average(fade, d / self.d0 * used, state.total)
            moved = _sum(jax.tree.map(lambda g, first, w: g * (first - w), gradients, state.first, params))
            numerator = fade * state.numerator + d / self.d0 * used * moved
            denominator = _sum(jax.tree.map(jnp.abs, total))
            found = self.d_coef * numerator / jnp.where(denominator > 0, denominator, 1.0)
            larger = jnp.maximum(d, found)
            updates = jax.tree.map(lambda m, v: -used * m / (jnp.sqrt(v) + larger * self.epsilon), m, v)
            updates = jax.tree.map(
                lambda u, w, decay: u - used * self.weight_decay * w if decay else u, updates, params, decays(axes)
            )
            count = optax.safe_increment(state.count)
            return updates, ProdigyState(count, m, v, total, state.first, larger, numerator, used)

        return optax.GradientTransformation(init, update)

    def used_rate(self, opt_state: ProdigyState, rate: optax.Schedule) -> Float[Array, ""]:
        return opt_state.used_rate


def _sum(tree: dict) -> Float[Array, ""]:
    """Return the sum of all elements, in float32."""
    return optax.tree.sum(jax.tree.map(lambda x: jnp.sum(x, dtype=jnp.float32), tree))
