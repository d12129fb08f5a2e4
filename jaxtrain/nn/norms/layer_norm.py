"""Layer normalisation over the last axis, in float32: Ba et al. (2016), arXiv:1607.06450."""

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
class LayerNormConfig(NormConfig):
    """(x - mean) / sqrt(var + epsilon) * scale + bias."""

    epsilon: float = 1e-5
    bias: bool = True
    paper: ClassVar[str] = "arXiv:1607.06450"

    def __post_init__(self):
        check_not_negative(self, "epsilon")

    def build(self, width: int) -> "LayerNorm":
        return LayerNorm(self, width)


class LayerNorm(nnx.Module):
    def __init__(self, config: LayerNormConfig, width: int):
        self.config = config
        self.scale = constant(1.0, (width,), ("width",))
        if config.bias:
            self.bias = constant(0.0, (width,), ("width",))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.config.epsilon)
        y = centred * inverse * jnp.expand_dims(self.scale[...], range(x.ndim - 1))
        if self.config.bias:
            y = y + jnp.expand_dims(self.bias[...], range(x.ndim - 1))
        return y.astype(x.dtype)
