"""Attention without positions. Haviv et al. (2022), arXiv:2203.16634."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float, Int

from jaxtrain.nn.positions.base import Positions


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPositions(Positions):
    """Nothing: the model learns positions from its mask, or has a table of them at its embedding."""

    paper: ClassVar[str] = "arXiv:2203.16634"

    def rotate(
        self, x: Float[Array, "B L H K"], positions: Int[Array, "B L"], *, length: int
    ) -> Float[Array, "B L H K"]:
        return x
