"""The base class of the formats of an 8-bit optimizer's moments."""

from abc import abstractmethod

from jaxtrain_kernels.block_quant import Format

from jaxtrain.technique import Technique


class Moments(Technique):
    """The formats of the first and the second moment of an 8-bit optimizer."""

    __slots__ = ()

    @property
    @abstractmethod
    def formats(self) -> tuple[Format, Format]: ...
