"""The plain feed-forward layer of two matrices: Vaswani et al. (2017), arXiv:1706.03762."""

from dataclasses import dataclass
from typing import ClassVar

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
class MLPConfig(FeedForwardConfig):
    """down(activation(up(x)))."""

    hidden: int
    activation: str = "gelu_tanh"
    bias: bool = False
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:1706.03762"

    def __post_init__(self):
        check_at_least_one(self, "hidden")
        check_activation(self.activation)

    @property
    def neurons(self) -> int:
        return self.hidden

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "MLP":
        return MLP(self, d_model, rngs=rngs)


class MLP(Layer):
    def __init__(self, config: MLPConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        width, hidden = ((d_model, "embed"),), ((config.hidden, "mlp"),)
        linears = config.linear.of_layer("up", "down")
        self.up = linears["up"].build(width, hidden, bias=config.bias, rngs=rngs)
        self.down = linears["down"].build(hidden, width, bias=config.bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        h_BLF = constrain(ACTIVATIONS[self.config.activation](self.up(x)), "batch", "length", "mlp")
        return Out(self.down(h_BLF))
