"""Feed-forward layers: plain, and gated (Shazeer, 2020, arXiv:2002.05202)."""

import functools
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.mesh import constrain
from jaxtrain.nn.dense import dense
from jaxtrain.nn.param import constant, normal
from jaxtrain.ranges import check_at_least_one

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: must be one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig:
    """down(activation(up(x)))."""

    hidden: int
    activation: str = "gelu_tanh"
    bias: bool = False

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        _check_activation(self.activation)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "MLP":
        return MLP(self, d_model, rngs=rngs)

    def matrix_count(self, d_model: int) -> int:
        return 2 * d_model * self.hidden

    def parameter_count(self, d_model: int) -> int:
        return self.matrix_count(d_model) + self.bias * (self.hidden + d_model)


class MLP(nnx.Module):
    def __init__(self, config: MLPConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        hidden = config.hidden
        self.up = normal(rngs.params(), (d_model, hidden), ("embed", "mlp"), fan_in=d_model)
        self.down = normal(rngs.params(), (hidden, d_model), ("mlp", "embed"), fan_in=hidden)
        if config.bias:
            self.up_bias = constant(0.0, (hidden,), ("mlp",))
            self.down_bias = constant(0.0, (d_model,), ("width",))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        h_BLF = dense(x, self.up[...])
        if self.config.bias:
            h_BLF = h_BLF + self.up_bias[...].astype(x.dtype)[None, None]
        h_BLF = constrain(ACTIVATIONS[self.config.activation](h_BLF), "batch", "length", "mlp")
        y = dense(h_BLF, self.down[...])
        return y + self.down_bias[...].astype(x.dtype)[None, None] if self.config.bias else y


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMLPConfig:
    """down(activation(gate(x)) * up(x))."""

    hidden: int
    activation: str = "silu"

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        _check_activation(self.activation)

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


FeedForwardConfig = MLPConfig | GatedMLPConfig
