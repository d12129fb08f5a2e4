"""Rows of the table of tokens, as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float, Int

from jaxtrain.nn.embeddings.base import EmbeddingConfig
from jaxtrain.nn.layer import TokenContext


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEmbedding(EmbeddingConfig):
    """The row of each token."""

    paper: ClassVar[str] = "common practice"

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"], context: TokenContext, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        return x
