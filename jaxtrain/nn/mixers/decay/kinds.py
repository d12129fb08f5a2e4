"""The log-decays: none, fixed, one a head and step, one a key channel and step.

Left out: decays that differ from layer to layer (lightning attention's slopes), and Mamba-2's step size on what is
written; the values' projection can learn the latter.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.dense import dense
from jaxtrain.nn.mixers.decay.base import DecayConfig, ScalarDecayConfig
from jaxtrain.nn.param import constant, normal, vector
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class NoDecay(ScalarDecayConfig):
    """Nothing is forgotten."""

    paper: ClassVar[str] = "arXiv:2006.16236"

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_NoDecay":
        return _NoDecay()

    def matrix_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return 0

    def parameter_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return 0


class _NoDecay(nnx.Module):
    def __call__(self, x: Float[Array, "B L D"]) -> None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedDecay(ScalarDecayConfig):
    """One number a head, not trained: 1 - 2^(-5 - head). Retention, Sun et al. (2023), arXiv:2307.08621."""

    paper: ClassVar[str] = "arXiv:2307.08621"

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_FixedDecay":
        return _FixedDecay(heads)

    def matrix_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return 0

    def parameter_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return 0


class _FixedDecay(nnx.Module):
    def __init__(self, heads: int):
        self.heads = heads

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, " J"]:
        return jnp.asarray(np.log1p(-(2.0 ** (-5.0 - np.arange(self.heads)))), jnp.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDecay(ScalarDecayConfig):
    """One number a head and step: -rate softplus(x w + bias). Mamba-2, Dao and Gu (2024), arXiv:2405.21060."""

    paper: ClassVar[str] = "arXiv:2405.21060"

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_StepDecay":
        return _StepDecay(d_model, heads, rngs=rngs)

    def matrix_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return d_model * heads

    def parameter_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return (d_model + 2) * heads


class _StepDecay(nnx.Module):
    def __init__(self, d_model: int, heads: int, *, rngs: nnx.Rngs):
        self.weight = normal(rngs.params(), (d_model, heads), ("embed", "kv_heads"), fan_in=d_model)
        self.bias = constant(-4.6, (heads,), ("kv_heads",))  # steps of 0.01 at first
        self.log_rate = vector(jnp.log(jnp.linspace(1.0, 16.0, heads)), ("kv_heads",))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L J"]:
        steps = jax.nn.softplus(dense(x, self.weight[...]).astype(jnp.float32) + self.bias[...][None, None])
        return -jnp.exp(self.log_rate[...])[None, None] * steps


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelDecay(DecayConfig):
    """One number a key channel and step: log sigmoid(x down up + bias) / temperature.

    Gated linear attention, Yang et al. (2023), arXiv:2312.06635, section 4.4.
    """

    rank: int = 16
    temperature: float = 16.0
    paper: ClassVar[str] = "arXiv:2312.06635"

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")
        check_positive(self, "temperature")

    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> "_ChannelDecay":
        return _ChannelDecay(self, d_model, heads, head_dim, rngs=rngs)

    def matrix_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return self.rank * (d_model + heads * head_dim)

    def parameter_count(self, d_model: int, heads: int, head_dim: int) -> int:
        return self.matrix_count(d_model, heads, head_dim) + heads * head_dim


class _ChannelDecay(nnx.Module):
    def __init__(self, config: ChannelDecay, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.temperature, rank = config.temperature, config.rank
        self.down = normal(rngs.params(), (d_model, rank), ("embed", "rank"), fan_in=d_model)
        self.up = normal(rngs.params(), (rank, heads, head_dim), ("rank", "kv_heads", "head_dim"), fan_in=rank)
        self.bias = constant(0.0, (heads, head_dim), ("kv_heads", "head_dim"))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L J K"]:
        logits = dense(dense(x, self.down[...]), self.up[...]).astype(jnp.float32)
        return jax.nn.log_sigmoid(logits + self.bias[...].astype(jnp.float32)[None, None]) / self.temperature
