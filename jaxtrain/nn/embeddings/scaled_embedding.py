"""Scaled rows of the table of tokens. Vaswani et al. (2017), arXiv:1706.03762, section 3.4; Gemma; Granite."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.nn.embeddings.base import EmbeddingConfig
from jaxtrain.nn.layer import TokenContext
from jaxtrain.ranges import check_positive_or_none


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledEmbedding(EmbeddingConfig):
    """The row of each token times `scale`, or times sqrt(d_model) where it is None."""

    scale: float | None = None
    paper: ClassVar[str] = "arXiv:1706.03762"

    def __post_init__(self):
        check_positive_or_none(self, "scale")

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"], context: TokenContext, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        return x * jnp.asarray(x.shape[-1] ** 0.5 if self.scale is None else self.scale, x.dtype)
