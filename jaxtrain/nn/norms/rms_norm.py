"""Root-mean-square normalisation over the last axis, in float32: Zhang and Sennrich (2019), arXiv:1910.07467."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.param import constant
from jaxtrain.ranges import check_not_negative


@dataclass(frozen=True, kw_only=True, slots=True)
class RMSNormConfig(NormConfig):
    """x / sqrt(mean(x^2) + epsilon) * scale."""

    epsilon: float = 1e-6
    paper: ClassVar[str] = "arXiv:1910.07467"

    def __post_init__(self):
        check_not_negative(self, "epsilon")

    def build(self, width: int) -> "RMSNorm":
        return RMSNorm(width, epsilon=self.epsilon, offset=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OffsetRMSNormConfig(NormConfig):
    """x / sqrt(mean(x^2) + epsilon) * (1 + scale): weight decay pulls towards no scaling (Gemma)."""

    epsilon: float = 1e-6
    paper: ClassVar[str] = "arXiv:2403.08295"

    def __post_init__(self):
        check_not_negative(self, "epsilon")

    def build(self, width: int) -> "RMSNorm":
        return RMSNorm(width, epsilon=self.epsilon, offset=1.0)


class RMSNorm(nnx.Module):
    def __init__(self, width: int, *, epsilon: float, offset: float):
        self.epsilon, self.offset = epsilon, offset
        self.scale = constant(1.0 - offset, (width,), ("width",))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x32 = x.astype(jnp.float32)
        scale = self.scale[...].astype(jnp.float32) + self.offset
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)
