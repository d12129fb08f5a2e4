"""One mixer and one feed-forward layer at every depth: Xue et al. (2022, WideNet), arXiv:2107.11817.

With a mixture as the feed-forward layer, a token may go to other experts at every depth.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain.models.sharing.base import Sharing


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedLayers(Sharing):
    """All repeats have the same mixers and feed-forward layers, and each its own norms."""

    paper: ClassVar[str] = "arXiv:2107.11817"

    def selects(self, path: str, parameter: nnx.Variable) -> bool:
        return not {"mixer", "mlp"}.isdisjoint(path.split("."))
