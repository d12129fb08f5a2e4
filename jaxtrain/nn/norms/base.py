"""The base class of norms' configurations."""

from abc import abstractmethod

from flax import nnx

from jaxtrain.technique import Technique


class NormConfig(Technique):
    """A frozen dataclass that builds a normalisation of the last axis, `[..., width]` to the same shape and dtype."""

    __slots__ = ()

    @abstractmethod
    def build(self, width: int) -> nnx.Module: ...
