"""The experts of gpt-oss: OpenAI (2025), gpt-oss-120b & gpt-oss-20b Model Card, arXiv:2508.10925."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.ranges import check_at_least_one, check_positive
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class ClampedGatedMLPConfig(FeedForwardConfig):
    """down(g sigmoid(alpha g) (u + 1)), where g = min(gate(x), limit) and u = up(x) between -limit and limit."""

    hidden: int
    alpha: float = 1.702
    limit: float = 7.0
    bias: bool = False
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2508.10925"

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        check_positive(self, "alpha", "limit")

    @property
    def neurons(self) -> int:
        return self.hidden

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "ClampedGatedMLP":
        return ClampedGatedMLP(self, d_model, rngs=rngs)


class ClampedGatedMLP(Layer):
    def __init__(self, config: ClampedGatedMLPConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        width, hidden = ((d_model, "embed"),), ((config.hidden, "mlp"),)
        linears = config.linear.of_layer("gate", "up", "down")
        self.gate = linears["gate"].build(width, hidden, bias=config.bias, rngs=rngs)
        self.up = linears["up"].build(width, hidden, bias=config.bias, rngs=rngs)
        self.down = linears["down"].build(hidden, width, bias=config.bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        c = self.config
        gate_BLF = jnp.minimum(self.gate(x), c.limit)
        up_BLF = jnp.clip(self.up(x), -c.limit, c.limit)
        h_BLF = gate_BLF * jax.nn.sigmoid(c.alpha * gate_BLF) * (up_BLF + 1)
        return Out(self.down(constrain(h_BLF, "batch", "length", "mlp")))
