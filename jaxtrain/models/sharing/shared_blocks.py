"""The same blocks at every depth: Lan et al. (2020, ALBERT), arXiv:1909.11942; Dehghani et al. (2019), 1807.03819."""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain.models.sharing.base import Sharing


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedBlocks(Sharing):
    """All repeats have the same parameters, norms too."""

    paper: ClassVar[str] = "arXiv:1909.11942"

    def selects(self, path: str, parameter: nnx.Variable) -> bool:
        return True
