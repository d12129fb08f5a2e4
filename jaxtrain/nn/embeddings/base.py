"""The base class of embeddings: the vectors that the first block reads."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.technique import Technique


class EmbeddingConfig(Technique):
    """A frozen dataclass that makes of tokens the vectors that the first block reads.

    Every model has a table with a row for each token. An embedding with more parameters builds them in `build`.
    """

    __slots__ = ()

    def build(self, d_model: int, max_length: int, *, norm: NormConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """Return the modules that the model has beside the table, by their names in it."""
        return {}

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B L D"], tokens: Int[Array, "B L"], context: TokenContext, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        """Return the vectors, from the rows `x` of the tokens in the table; `own` is what `build` made."""
