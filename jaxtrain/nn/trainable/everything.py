"""All parameters are trained."""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain.nn.trainable.base import Trainable


@dataclass(frozen=True, kw_only=True, slots=True)
class Everything(Trainable):
    """All parameters of the model."""

    paper: ClassVar[str] = "common practice"
    may_be_all: ClassVar[bool] = True

    def selects(self, path: str, parameter: nnx.Param) -> bool:
        return True
