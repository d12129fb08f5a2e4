"""Norms alone are trained. Frankle et al. (2020), arXiv:2003.00152, for transformers."""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain.nn.trainable.base import Trainable


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlyNorms(Trainable):
    """The scales and biases of norms."""

    paper: ClassVar[str] = "arXiv:2003.00152"

    def selects(self, path: str, parameter: nnx.Param) -> bool:
        return path.rpartition(".")[0].endswith("norm")
