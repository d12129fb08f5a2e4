"""AdamW's arithmetic on float32 numbers. Kingma and Ba (2015), arXiv:1412.6980; Loshchilov and Hutter (2019),
arXiv:1711.05101.

    m' = b1 m + (1 - b1) g        v' = b2 v + (1 - b2) g^2
    update = -rate * (m' / (1 - b1^t) / (sqrt(v' / (1 - b2^t)) + epsilon) + weight_decay * p)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.block_quant.array import QuantizedArray

Numbers = Float[Array, "..."]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """The numbers of AdamW that are the same in every step."""

    b1: float
    b2: float
    epsilon: float
    weight_decay: float


class AdamWStep(NamedTuple):
    """The update, which is added to the parameter, and the new moments."""

    update: Float[Array, "..."]
    m: QuantizedArray
    v: QuantizedArray


def scalars(rule: AdamW, learning_rate: Float[Array, ""], step: Int[Array, ""] | int) -> Float[Array, "3"]:
    """Return -rate, 1 / (1 - b1^t) and 1 / (1 - b2^t), `step` counting from 1."""
    t = jnp.asarray(step, jnp.float32)
    rate = jnp.asarray(learning_rate, jnp.float32)
    return jnp.stack([-rate, 1.0 / (1.0 - rule.b1**t), 1.0 / (1.0 - rule.b2**t)])


def new_moments(rule: AdamW, m: Numbers, v: Numbers, gradient: Numbers) -> tuple[Numbers, Numbers]:
    return (
        rule.b1 * m + (1.0 - rule.b1) * gradient,
        rule.b2 * v + (1.0 - rule.b2) * (gradient * gradient),
    )


def update(rule: AdamW, m: Numbers, v: Numbers, parameter: Numbers, s: Sequence[Numbers]) -> Numbers:
    """Return what is added to the parameter; `s` are the three `scalars`."""
    direction = m * s[1] / (jnp.sqrt(v * s[2]) + rule.epsilon)
    return s[0] * (direction + rule.weight_decay * parameter)
