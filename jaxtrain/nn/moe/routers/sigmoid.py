"""The router of DeepSeek-V3 (2024), arXiv:2412.19437, equation 15."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Router, linear_logits
from jaxtrain.nn.moe.routing import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Sigmoid(Router):
    """sigmoid(x router): the scores of experts do not compete."""

    paper: ClassVar[str] = "arXiv:2412.19437"

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Mapping[str, Any]) -> Scores:
        logits = linear_logits(x, own)
        return Scores(logits, jax.nn.sigmoid(logits))
