"""What a mixer is: what lets the tokens of a sequence see one another."""

from abc import abstractmethod

from flax import nnx

from jaxtrain.nn.layer import Layer
from jaxtrain.technique import Technique


class MixerConfig(Technique):
    """A frozen dataclass that builds a mixer along the length.

    The layer is called with `x [batch, length, d_model]`, a `TokenContext` and a decoding state or None. Its
    `initial_state(batch, length, dtype)` is an empty one.
    """

    __slots__ = ()
    heads: int  # which the tensor axis divides

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> Layer: ...

    @abstractmethod
    def mixing_flops(self, length: int) -> float:
        """Return the operations of a token's mixing in sequences of this length, forward and backward."""
