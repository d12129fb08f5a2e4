"""Learned absolute positions. GPT-2 (Radford et al., 2019); BERT (Devlin et al., 2018), arXiv:1810.04805.

BERT's token types are left out: texts of one part all have type 0, whose vector can be added to every position.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.nn.embeddings.base import EmbeddingConfig
from jaxtrain.nn.embeddings.tables import PositionTable, look_up
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedPositions(EmbeddingConfig):
    """The row of each token plus a learned vector of its position. With `normalised` a norm follows (BERT)."""

    normalised: bool = False
    paper: ClassVar[str] = "arXiv:1810.04805"

    def build(self, d_model: int, max_length: int, *, norm: NormConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        positions = {"positions": PositionTable(max_length, d_model, rngs=rngs)}
        return positions | ({"embedding_norm": norm.build(d_model)} if self.normalised else {})

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"], context: TokenContext, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = x + look_up(own["positions"].table[...], context.positions, x.dtype)
        return own["embedding_norm"](constrain(x, "batch", "residual_length", None)) if self.normalised else x
