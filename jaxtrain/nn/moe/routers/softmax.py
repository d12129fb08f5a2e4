"""The router of Shazeer et al. (2017), arXiv:1701.06538."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Router, linear_logits
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.nn.param import constant


@dataclass(frozen=True, kw_only=True, slots=True)
class Softmax(Router):
    """softmax(x router), over all experts. With `bias` each expert has one, which is trained (gpt-oss)."""

    bias: bool = False
    paper: ClassVar[str] = "arXiv:1701.06538"

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        own = Router.build(self, d_model, experts, rngs=rngs)
        return own | {"router_bias": constant(0.0, (experts,), (None,))} if self.bias else own

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Mapping[str, Any]) -> Scores:
        logits = linear_logits(x, own)
        if self.bias:
            logits = logits + own["router_bias"][...][None, None]
        return Scores(logits, jax.nn.softmax(logits, axis=-1))
