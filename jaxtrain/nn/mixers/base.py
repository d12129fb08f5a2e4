"""What a mixer is: what lets the tokens of a sequence see one another."""

from abc import ABC, abstractmethod

from flax import nnx


class MixerConfig(ABC):
    """A frozen dataclass that builds a mixer along the length.

    The module is called with `x [batch, length, d_model]`, a `TokenContext` and a decoding state or None, and returns
    what it adds to the residual stream, and the new state. Its `initial_state(batch, length, dtype)` is an empty one.
    """

    __slots__ = ()
    heads: int  # which the tensor axis divides

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> nnx.Module: ...

    @abstractmethod
    def mixing_flops(self, length: int) -> float:
        """Return the operations of a token's mixing in sequences of this length, forward and backward."""
