"""Rotary embeddings of a part of each head. Black et al. (2022), arXiv:2204.06745."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.positions.rotary_embedding import RotaryEmbedding, turn_halves
from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialRotary(RotaryEmbedding):
    """Rotary embeddings of the first elements of each head, a `fraction` of them, in pairs of halves."""

    fraction: float
    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    paper: ClassVar[str] = "arXiv:2204.06745"

    def __post_init__(self):
        check_positive(self, "theta")
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"fraction={self.fraction}: must be in (0, 1), the part of each head that is rotated; for whole heads "
                "take Rotary"
            )

    def rotated(self, head_dim: int) -> int:
        return int(head_dim * self.fraction)

    def turn(
        self, x: Float[Array, "B L H K"], cos: Float[Array, "B L 1 half"], sin: Float[Array, "B L 1 half"]
    ) -> Float[Array, "B L H K"]:
        return turn_halves(x, cos, sin)
