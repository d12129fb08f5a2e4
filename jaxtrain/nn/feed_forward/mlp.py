"""The plain feed-forward layer of two matrices: Vaswani et al. (2017), arXiv:1706.03762."""

from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.dense import dense
from jaxtrain.nn.feed_forward.activations import ACTIVATIONS, check_activation
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.param import constant, normal
from jaxtrain.ranges import check_at_least_one
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig(FeedForwardConfig):
    """down(activation(up(x)))."""

    hidden: int
    activation: str = "gelu_tanh"
    bias: bool = False

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        check_activation(self.activation)

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
