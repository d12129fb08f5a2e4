"""Gated feed-forward layers: Shazeer (2020), arXiv:2002.05202."""

import functools
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
from jaxtrain.sharding import constrain, on_tpu


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
        h_BLF = gated(self.gate(x), self.up(x), self.config.activation)
        return Out(self.down(constrain(h_BLF, "batch", "length", "mlp")))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gated(gate: Float[Array, "B L F"], up: Float[Array, "B L F"], activation: str) -> Float[Array, "B L F"]:
    """Return activation(gate) * up. Its gradients, the widest values of a layer, are computed once, before their use.

    Otherwise XLA recomputes each gradient for every matrix product that reads it, and keeps all that this needs.
    """
    return ACTIVATIONS[activation](gate) * up


def _gated_forward(gate, up, activation):
    # Not `gated` itself, so that a gradient can be differentiated in forward mode.
    return ACTIVATIONS[activation](gate) * up, (gate, up)


def _gated_backward(activation, residuals, dh):
    gate, up = residuals
    activated, vjp = jax.vjp(ACTIVATIONS[activation], gate)
    (dgate,) = vjp(dh * up)
    if on_tpu():
        # XLA for TPU writes an output over an operand only where there is no other output. So the gradient of up is
        # computed alone, after that of gate: four values of this size are alive at once, not five.
        dgate, dh, gate = jax.lax.optimization_barrier((dgate, dh, gate))
        activated = ACTIVATIONS[activation](gate)
    return jax.lax.optimization_barrier((dgate, dh * activated))


gated.defvjp(_gated_forward, _gated_backward)
