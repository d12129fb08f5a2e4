"""The base classes of log-decays: how fast the state of a recurrent mixer forgets."""

from abc import abstractmethod

from flax import nnx

from jaxtrain.technique import Technique


class DecayConfig(Technique):
    """A frozen dataclass that builds the log-decay of a recurrent mixer.

    The module is called with `x [batch, length, d_model]` and returns float32 log-decays, which are never positive:
    by head, by step and head, or by step, head and key channel. It returns None where nothing is forgotten.
    """

    __slots__ = ()

    @abstractmethod
    def build(self, d_model: int, heads: int, head_dim: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


class ScalarDecayConfig(DecayConfig):
    """A log-decay that all key channels of a head share."""

    __slots__ = ()
