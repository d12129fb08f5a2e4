"""No feed-forward layer: for blocks that are a mixer alone. Zhou et al. (2023, Brainformers), arXiv:2306.00008."""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext


@dataclass(frozen=True, kw_only=True, slots=True)
class NoFeedForward(FeedForwardConfig):
    """The block has no feed-forward layer. Its join is `MixerAlone`."""

    absent: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:2306.00008"

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Nothing":
        return Nothing()


class Nothing(Layer):
    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        raise AssertionError("a join calls no layer that is absent")
