"""The choice of Shazeer et al. (2017), arXiv:1701.06538; of one expert, Fedus et al. (2021), arXiv:2101.03961."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import best
from jaxtrain.nn.moe.selections.base import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK(Selection):
    """The `top_k` experts with the greatest scores."""

    paper: ClassVar[str] = "arXiv:1701.06538"

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        return best(scores, top_k)
