"""Gated feed-forward layers: Shazeer (2020), arXiv:2002.05202."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.activations import ACTIVATIONS, check_activation
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.ranges import check_at_least_one
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMLPConfig(FeedForwardConfig):
    """down(activation(gate(x)) * up(x))."""

    hidden: int
    activation: str = "silu"
    bias: bool = False
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2002.05202"

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        check_activation(self.activation)

    @property
    def neurons(self) -> int:
        return self.hidden

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "GatedMLP":
        return GatedMLP(self, d_model, rngs=rngs)


class GatedMLP(Layer):
    def __init__(self, config: GatedMLPConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        width, hidden = ((d_model, "embed"),), ((config.hidden, "mlp"),)
        linears = config.linear.of_layer("gate", "up", "down")
        self.gate = linears["gate"].build(width, hidden, bias=config.bias, rngs=rngs)
        self.up = linears["up"].build(width, hidden, bias=config.bias, rngs=rngs)
        self.down = linears["down"].build(hidden, width, bias=config.bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        gate_BLF, up_BLF = _materialise_gradients(self.gate(x), self.up(x))
        h_BLF = constrain(ACTIVATIONS[self.config.activation](gate_BLF) * up_BLF, "batch", "length", "mlp")
        return Out(self.down(h_BLF))


@jax.custom_vjp
def _materialise_gradients(gate: Float[Array, "B L F"], up: Float[Array, "B L F"]):
    """Return both unchanged. Their gradients, the widest values of a layer, are computed once, before their use.

    Otherwise XLA recomputes each gradient for every matrix product that reads it, and keeps all that this needs.
    """
    return gate, up


_materialise_gradients.defvjp(
    lambda gate, up: ((gate, up), None), lambda _, gradients: jax.lax.optimization_barrier(gradients)
)
