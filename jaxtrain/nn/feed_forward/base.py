"""What a feed-forward layer is."""

from abc import ABC, abstractmethod

from flax import nnx


class FeedForwardConfig(ABC):
    """A frozen dataclass that builds a layer over the width, token by token: `[batch, length, d_model]` to the same."""

    __slots__ = ()

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> nnx.Module: ...
