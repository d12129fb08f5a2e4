"""Adapters alone are trained: Houlsby et al. (2019), arXiv:1902.00751, and all that came after."""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain.nn.param import Adapter
from jaxtrain.nn.trainable.base import Trainable


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters(Trainable):
    """The parameters that a layer adds as an adapter, such as those of LoRA."""

    paper: ClassVar[str] = "arXiv:1902.00751"

    def selects(self, path: str, parameter: nnx.Param) -> bool:
        return isinstance(parameter, Adapter)
