"""The base class of what tells attention where its tokens are."""

from abc import abstractmethod

from jaxtyping import Array, Float, Int

from jaxtrain.technique import Technique


class Positions(Technique):
    """A frozen dataclass that tells attention where its tokens are: it rotates heads, or lowers scores by distance."""

    __slots__ = ()

    @abstractmethod
    def rotate(
        self, x: Float[Array, "B L H K"], positions: Int[Array, "B L"], *, length: int
    ) -> Float[Array, "B L H K"]:
        """Return queries, or keys, with each head turned by the position of its token.

        `length` is that of the whole row, of which `positions` may be a part.
        """

    def slopes(self, heads: int) -> tuple[float, ...] | None:
        """Return a number for each head, by which a score falls with every step between query and key, or None."""
        return None

    def check(self, head_dim: int) -> None:
        """Raise ValueError for a head that cannot be turned."""

    def check_decoding(self, head_dim: int, first: int, last: int) -> None:
        """Raise ValueError where keys would change while a row grows from `first` to `last` tokens."""
