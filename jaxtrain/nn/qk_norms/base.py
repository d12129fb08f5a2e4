"""The base class of norms of queries and keys."""

from abc import abstractmethod
from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.technique import Technique


class QKNorm(Technique):
    """A frozen dataclass that normalises queries, and keys, before they are rotated and multiplied."""

    __slots__ = ()

    @abstractmethod
    def build(self, heads: int, head_dim: int) -> nnx.Module:
        """Return the norm of so many heads, with its parameters."""

    @abstractmethod
    def __call__(self, norm: Callable, x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
        """Return queries or keys, normalised by the norm that was built for them."""
