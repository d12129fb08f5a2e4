"""The log-decays: none, fixed, one for each head and step, one for each key channel and step.

Left out: decays that differ from layer to layer (lightning attention's slopes), and Mamba-2's step size as a factor of
what is written, which the projection of the values can learn.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.decay.base import DecayConfig, ScalarDecayConfig
from jaxtrain.nn.param import constant, vector
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class NoDecay(ScalarDecayConfig):
    """Nothing is forgotten."""

    paper: ClassVar[str] = "arXiv:2006.16236"

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_NoDecay":
        return _NoDecay()


class _NoDecay(nnx.Module):
    def __call__(self, x: Float[Array, "B L D"]) -> None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedDecay(ScalarDecayConfig):
    """One number a head, not trained: 1 - 2^(-5 - head). Retention, Sun et al. (2023), arXiv:2307.08621."""

    paper: ClassVar[str] = "arXiv:2307.08621"

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_FixedDecay":
        return _FixedDecay(heads)


class _FixedDecay(nnx.Module):
    def __init__(self, heads: int):
        self.heads = heads

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, " J"]:
        return jnp.asarray(np.log1p(-(2.0 ** (-5.0 - np.arange(self.heads)))), jnp.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDecay(ScalarDecayConfig):
    """One number a head and step: -rate softplus(x w + bias). Mamba-2, Dao and Gu (2024), arXiv:2405.21060."""

    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2405.21060"

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_StepDecay":
        return _StepDecay(self.linear, d_model, heads, rngs=rngs)


class _StepDecay(nnx.Module):
    def __init__(self, linear: LinearConfig, d_model: int, heads: int, *, rngs: nnx.Rngs):
        self.step = linear.of_layer("step")["step"].build(((d_model, "embed"),), ((heads, "kv_heads"),), rngs=rngs)
        self.bias = constant(-4.6, (heads,), ("kv_heads",))  # softplus(-4.6) = 0.01
        self.log_rate = vector(jnp.log(jnp.linspace(1.0, 16.0, heads)), ("kv_heads",))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L J"]:
        steps = jax.nn.softplus(self.step(x).astype(jnp.float32) + self.bias[...][None, None])
        return -jnp.exp(self.log_rate[...])[None, None] * steps


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelDecay(DecayConfig):
    """One number a key channel and step: log sigmoid(x down up + bias) / temperature.

    Gated linear attention, Yang et al. (2023), arXiv:2312.06635, section 4.4.
    """

    rank: int = 16
    temperature: float = 16.0
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2312.06635"

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")
        check_positive(self, "temperature")

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_ChannelDecay":
        return _ChannelDecay(self, d_model, heads, head_dim, rngs=rngs)


class _ChannelDecay(nnx.Module):
    def __init__(self, config: ChannelDecay, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.temperature, rank = config.temperature, ((config.rank, "rank"),)
        linears = config.linear.of_layer("down", "up")
        self.down = linears["down"].build(((d_model, "embed"),), rank, rngs=rngs)
        self.up = linears["up"].build(rank, ((heads, "kv_heads"), (head_dim, "head_dim")), rngs=rngs)
        self.bias = constant(0.0, (heads, head_dim), ("kv_heads", "head_dim"))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L J K"]:
        logits = self.up(self.down(x)).astype(jnp.float32)
        return jax.nn.log_sigmoid(logits + self.bias[...].astype(jnp.float32)[None, None]) / self.temperature
