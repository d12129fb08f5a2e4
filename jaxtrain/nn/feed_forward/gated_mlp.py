"""Gated feed-forward layers: Shazeer (2020), arXiv:2002.05202."""

from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.dense import dense
from jaxtrain.nn.feed_forward.activations import ACTIVATIONS, check_activation
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.param import normal
from jaxtrain.ranges import check_at_least_one
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMLPConfig(FeedForwardConfig):
    """down(activation(gate(x)) * up(x))."""

    hidden: int
    activation: str = "silu"

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        check_activation(self.activation)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "GatedMLP":
        return GatedMLP(self, d_model, rngs=rngs)

    def matrix_count(self, d_model: int) -> int:
        return 3 * d_model * self.hidden

    def parameter_count(self, d_model: int) -> int:
        return self.matrix_count(d_model)


class GatedMLP(nnx.Module):
    def __init__(self, config: GatedMLPConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        hidden = config.hidden
        self.gate = normal(rngs.params(), (d_model, hidden), ("embed", "mlp"), fan_in=d_model)
        self.up = normal(rngs.params(), (d_model, hidden), ("embed", "mlp"), fan_in=d_model)
        self.down = normal(rngs.params(), (hidden, d_model), ("mlp", "embed"), fan_in=hidden)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gate_BLF, up_BLF = _used_together(dense(x, self.gate[...]), dense(x, self.up[...]))
        h_BLF = constrain(ACTIVATIONS[self.config.activation](gate_BLF) * up_BLF, "batch", "length", "mlp")
        return dense(h_BLF, self.down[...])


@jax.custom_vjp
def _used_together(gate: Float[Array, "B L F"], up: Float[Array, "B L F"]):
    """Return both as they are; their gradients, the widest values of a layer, are made at once and then used.

    Otherwise XLA makes each of them again for every product that reads it, and keeps all they are made of.
    """
    return gate, up


_used_together.defvjp(lambda gate, up: ((gate, up), None), lambda _, gradients: jax.lax.optimization_barrier(gradients))
