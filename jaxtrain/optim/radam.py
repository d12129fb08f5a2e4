"""RAdam, Adam that waits for its second moment. Liu et al. (2019), arXiv:1908.03265, algorithm 2.

After t steps the second moment is as good as one of rho_t = rho_inf - 2 t b2^t / (1 - b2^t) gradients, where
rho_inf = 2 / (1 - b2) - 1. Above 4 of these a step is Adam's times the rectifier r_t, before that it is that of the
momentum alone. With b2 = 0.999 the fifth step is the first rectified one. (torch and optax begin at the sixth.)
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive

LEAST_LENGTH = 4.0  # of the average, above which its variance is finite


@dataclass(frozen=True, kw_only=True, slots=True)
class RAdam(Optimizer):
    """Adam without the need of a warm-up: steps grow with the number of gradients that the second moment has seen.

    The state has 8 bytes a parameter, as Adam's.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:1908.03265"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")
        if 2 / (1 - self.b2) - 1 <= LEAST_LENGTH:
            raise ValueError(f"b2={self.b2}: must be above 0.6, or no step is ever Adam's; take 0.999")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.chain(
            optax.GradientTransformation(optax.scale_by_adam().init, self._direction),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )

    def _direction(self, gradients: dict, state: optax.ScaleByAdamState, params: dict | None = None) -> tuple:
        step = optax.safe_increment(state.count)
        m = optax.tree.update_moment(gradients, state.mu, self.b1, 1)
        v = optax.tree.update_moment_per_elem_norm(gradients, state.nu, self.b2, 2)
        momentum = optax.tree.bias_correction(m, self.b1, step)
        squares = optax.tree.bias_correction(v, self.b2, step)
        r = rectifier(step, self.b2)

        def one(m: Float[Array, "..."], v: Float[Array, "..."]) -> Float[Array, "..."]:
            return jnp.where(r > 0, r.astype(m.dtype) * m / (jnp.sqrt(v) + self.epsilon), m)

        return jax.tree.map(one, momentum, squares), optax.ScaleByAdamState(step, m, v)


def length(step: Int[Array, ""], b2: float) -> Float[Array, ""]:
    """Return rho_t in float32 to 1e-6 of rho_t - 4, where its formula takes near numbers from each other.

    With x = -t log(b2) / 2 it is t + L(x / t) - t L(x), where L(x) = coth(x) - 1 / x; for x below 1/2 L is its series.
    """
    a = -math.log(b2)
    t = step.astype(jnp.float32)
    x = a * t / 2
    few = t * (1 - x / 3 * (1 - x**2 / 15 * (1 - 2 * x**2 / 21 * (1 - x**2 / 10 * (1 - 10 * x**2 / 99)))))
    many = 2 / (1 - b2) - 1 - 2 * t / jnp.expm1(2 * x)
    return jnp.where(x < 0.5, few + (1 / math.tanh(a / 2) - 2 / a), many)


def rectifier(step: Int[Array, ""], b2: float) -> Float[Array, ""]:
    """Return r_t; 0 where rho_t is not above 4."""
    rho, most = length(step, b2), 2 / (1 - b2) - 1
    scale = most / ((most - 4) * (most - 2))
    return jnp.sqrt(jnp.maximum(rho - LEAST_LENGTH, 0.0) * (rho - 2) / rho * scale)
