"""D-Adaptation of Adam. Defazio and Mishchenko (2023), arXiv:2301.07733, its version for Adam.

Finds d, a lower bound of the distance (in the largest element) from the first weights to the best ones, and steps by
d times the rate. With h the square root of b2 and the weighted sum s <- h s + (1 - h) d rate g, d grows to
sum(d rate <g, s / sqrt(v)>) / |s|_1, where the outer sum fades by h as well. Moments have Adam's corrections of bias,
which the authors' code calls `use_bias_correction`; decay has none. As there, d stays where it is while s is 0: in
steps of rate 0.

All parameters have one d, so the step of a layer depends on the other layers.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


class DAdaptationState(NamedTuple):
    """optax's state, and the learning rate of the last update."""

    inner: optax.contrib.DAdaptAdamWState
    used_rate: Float[Array, ""]


@dataclass(frozen=True, kw_only=True, slots=True)
class DAdaptation(Optimizer):
    """Adam that finds its learning rate; `learning_rate` is a factor of it, with a peak of 1.

    The state has 12 bytes a parameter: the moments and the weighted sum of gradients.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    d0: float = 1e-6
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    paper: ClassVar[str] = "arXiv:2301.07733"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "b2", "d0", "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        adam = optax.contrib.dadapt_adamw(rate, (self.b1, self.b2), self.epsilon, self.d0)

        def init(params: dict) -> DAdaptationState:
            return DAdaptationState(adam.init(params), jnp.zeros((), jnp.float32))

        def update(gradients: dict, state: DAdaptationState, params: dict) -> tuple[dict, DAdaptationState]:
            used, before = state.inner.estim_lr * rate(state.inner.count), state.inner.estim_lr
            updates, inner = adam.update(gradients, state.inner, params)
            # optax divides 0 by 0 where the weighted sum is 0, and has no decay for some parameters alone.
            inner = inner._replace(
                estim_lr=jnp.where(optax.tree.norm(inner.grad_sum, ord=1) > 0, inner.estim_lr, before)
            )
            updates = jax.tree.map(
                lambda u, w, facts: u - used * self.weight_decay * w if facts.decays else u, updates, params, axes
            )
            return updates, DAdaptationState(inner, used.astype(jnp.float32))

        return optax.GradientTransformation(init, update)

    def used_rate(self, opt_state: DAdaptationState, rate: optax.Schedule) -> Float[Array, ""]:
        return opt_state.used_rate
