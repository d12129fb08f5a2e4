"""The router of Shazeer et al. (2017), arXiv:1701.06538."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Router, linear_logits
from jaxtrain.nn.moe.routing import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Softmax(Router):
    """softmax(x router), over all experts."""

    paper: ClassVar[str] = "arXiv:1701.06538"

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Mapping[str, Any]) -> Scores:
        logits = linear_logits(x, own)
        return Scores(logits, jax.nn.softmax(logits, axis=-1))
