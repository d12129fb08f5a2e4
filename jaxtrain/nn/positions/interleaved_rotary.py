"""Rotary embeddings with pairs of neighbours, as in the paper: GPT-J, Cohere. Su et al. (2021), arXiv:2104.09864."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.positions.rotary_embedding import RotaryEmbedding, turn_neighbours
from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class InterleavedRotary(RotaryEmbedding):
    """Rotary embeddings of pairs (x[2i], x[2i + 1]), of the first elements of each head, a `fraction` of them."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    fraction: float = 1.0
    paper: ClassVar[str] = "arXiv:2104.09864"

    def __post_init__(self):
        check_positive(self, "theta")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: must be in (0, 1], the part of each head that is rotated")

    def rotated(self, head_dim: int) -> int:
        return int(head_dim * self.fraction)

    def turn(
        self, x: Float[Array, "B L H K"], cos: Float[Array, "B L 1 half"], sin: Float[Array, "B L 1 half"]
    ) -> Float[Array, "B L H K"]:
        return turn_neighbours(x, cos, sin)
