"""Normalised rows of the table of tokens. Le Scao et al. (2022, BLOOM), arXiv:2211.05100, section 3.2.3; ModernBERT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.nn.embeddings.base import EmbeddingConfig
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalisedEmbedding(EmbeddingConfig):
    """A norm of the row of each token."""

    paper: ClassVar[str] = "arXiv:2211.05100"

    def build(self, d_model: int, max_length: int, *, norm: NormConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        return {"embedding_norm": norm.build(d_model)}

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"], context: TokenContext, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        return own["embedding_norm"](constrain(x, "batch", "residual_length", None))
