"""Attention with linear biases. Press et al. (2021), arXiv:2108.12409."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float, Int

from jaxtrain.nn.positions.base import Positions


@dataclass(frozen=True, kw_only=True, slots=True)
class ALiBi(Positions):
    """Scores lowered by the distance of the key, each head by a slope of its own."""

    paper: ClassVar[str] = "arXiv:2108.12409"

    def rotate(
        self, x: Float[Array, "B L H K"], positions: Int[Array, "B L"], *, length: int
    ) -> Float[Array, "B L H K"]:
        return x

    def slopes(self, heads: int) -> tuple[float, ...]:
        """Return the slopes of section 3: 2^-8/n, 2^-16/n, ... for n heads, a power of two.

        For another n they are those of the power below, and every second one of the power above.
        """
        below = 1 << (heads.bit_length() - 1)
        of_below, of_above = ([2.0 ** (-8 * i / n) for i in range(1, n + 1)] for n in (below, 2 * below))
        return tuple(of_below + of_above[::2][: heads - below])
