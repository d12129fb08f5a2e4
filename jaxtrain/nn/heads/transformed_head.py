"""The head of masked language models: a transform of the hidden states, and a bias of the logits.

Devlin et al. (2018, BERT), arXiv:1810.04805; its transform and bias are in the authors' code. ModernBERT, Warner et al.
(2024), arXiv:2412.13663, has the transform without a bias.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.fully_sharded import gather
from jaxtrain.nn.feed_forward.activations import ACTIVATIONS, check_activation
from jaxtrain.nn.heads.base import HeadConfig
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.param import axes_of, constant, merge, split


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformedHead(HeadConfig):
    """The logits of norm(activation(dense(x))), plus a bias. The head is tied where `linear` is None.

    `bias` tells whether the transform's dense layer has one, `logit_bias` whether each word has one.
    """

    activation: str = "gelu"
    bias: bool = True
    logit_bias: bool = True
    linear: LinearConfig | None = None
    paper: ClassVar[str] = "arXiv:1810.04805"

    def __post_init__(self):
        check_activation(self.activation)

    def build(self, d_model: int, rows: int, *, norm: NormConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        own: dict[str, Any] = {"transform": Transform(self, d_model, norm, rngs=rngs)}
        return own | ({"logit_bias": constant(0.0, (rows,), ("vocab",))} if self.logit_bias else {})

    def __call__(self, plain: Head, own: Mapping[str, Any]) -> Head:
        graph, state = split(own["transform"])
        transform = merge(graph, gather(state, axes_of(own["transform"]), plain.dtype))
        bias = own["logit_bias"][...] if self.logit_bias else None
        return plain._replace(norm=lambda x: transform(plain.norm(x)), bias=bias)


class Transform(nnx.Module):
    def __init__(self, config: TransformedHead, d_model: int, norm: NormConfig, *, rngs: nnx.Rngs):
        self.activation = config.activation
        width = ((d_model, "embed"),), ((d_model, "width"),)
        self.dense = Dense().build(*width, bias=config.bias, rngs=rngs)
        self.norm = norm.build(d_model)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.norm(ACTIVATIONS[self.activation](self.dense(x)))
