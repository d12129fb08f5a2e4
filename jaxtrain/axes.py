"""The facts about a parameter, which lie on it and which all that handles parameters reads."""

import enum
from dataclasses import dataclass, replace

STACK = "repeats"  # the leading axis of parameters that are stacked over the repeats of a pattern


class Kind(enum.Enum):
    """What a parameter is to those who update, move and quantize it."""

    MATRIX = "matrix"  # multiplies activations
    VECTOR = "vector"  # a scale, a bias or a rate, whatever axes it has
    TABLE = "table"  # rows are looked up in it
    CODES = "codes"  # quantized weights: no arithmetic but their own


@dataclass(frozen=True, slots=True)
class Axes:
    """Logical names of the axes, the kind, and whether a gather may convert to the compute dtype.

    Not a tuple, so that it is a leaf in a tree of facts that has the structure of the parameters.
    """

    names: tuple[str | None, ...]
    kind: Kind
    cast: bool

    @property
    def in_stack(self) -> bool:
        return self.names[:1] == (STACK,)

    @property
    def decays(self) -> bool:
        """Whether weight decay falls on it."""
        return self.kind in (Kind.MATRIX, Kind.TABLE)

    def stacked(self) -> "Axes":
        """Return the facts of a stack of such parameters."""
        return replace(self, names=(STACK, *self.names))
