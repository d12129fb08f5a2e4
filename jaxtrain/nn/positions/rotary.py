"""Rotary embeddings of whole heads, with pairs of halves: the layout of most released weights."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.positions.rotary_embedding import RotaryEmbedding, turn_halves
from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotary(RotaryEmbedding):
    """Pairs (x[i], x[i + K/2]) of each head rotated by position * theta^(-2i/K)."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    paper: ClassVar[str] = "arXiv:2104.09864"

    def __post_init__(self):
        check_positive(self, "theta")

    def rotated(self, head_dim: int) -> int:
        return head_dim

    def turn(
        self, x: Float[Array, "B L H K"], cos: Float[Array, "B L 1 half"], sin: Float[Array, "B L 1 half"]
    ) -> Float[Array, "B L H K"]:
        return turn_halves(x, cos, sin)
