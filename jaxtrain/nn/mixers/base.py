"""The base classes of mixers, the layers that move information between positions."""

import enum
from abc import abstractmethod
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.layer import Layer
from jaxtrain.technique import Technique


class Keep(enum.Enum):
    """What stands in the place of a state where a mixer is asked for the keys and values of whole rows, as a state."""

    KEYS = enum.auto()


class Mixer(Layer):
    """A layer that moves information between positions."""

    @abstractmethod
    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> Any:
        """Return the decoding state before the first of `length` tokens."""


class MixerConfig(Technique):
    """A frozen dataclass that builds a mixer along the length.

    The mixer is called with `x [batch, length, d_model]`, a `TokenContext` and a decoding state or None.
    """

    __slots__ = ()
    heads: int  # the tensor axis divides it
    absent: ClassVar[bool] = False  # the block has no such layer

    @property
    def causal(self) -> bool:
        """Whether a token reads those before it alone."""
        return True

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> Mixer: ...

    def check_decoding(self, first: int, last: int) -> None:
        """Raise ValueError where a row cannot be decoded while it grows from `first` to `last` tokens."""

    def check_gaps(self) -> None:
        """Raise ValueError where it cannot mix rows some of whose tokens are left out, each at its own position.

        A mixer that can also takes `Keep` for its state. With a state and no cache_index it attends to what is in that
        state, and writes nothing.
        """
        raise ValueError(
            f"mixer={type(self).__name__}: it goes by the places of tokens in a row, so none can be left out "
            "(depth); take attention"
        )

    @abstractmethod
    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs that mixing takes for a token of a sequence of this length, forward and backward."""
