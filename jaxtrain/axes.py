"""The facts about a parameter: its axes, its kind, and whether it may be cast. They are stored on its variable."""

import enum
from dataclasses import dataclass, replace

STACK = "repeats"  # the leading axis of parameters that are stacked over the repeats of a pattern
EXPERTS = "experts"  # the leading axis, behind that, of parameters that are stacked over experts


class Kind(enum.Enum):
    """The kind of a parameter. It decides how the parameter is updated, moved and quantized."""

    MATRIX = "matrix"  # multiplies activations
    VECTOR = "vector"  # a scale, a bias or a rate, whatever axes it has
    TABLE = "table"  # rows are looked up in it
    CODES = "codes"  # quantized weights, for which only their own operations are defined


@dataclass(frozen=True, slots=True)
class Axes:
    """Logical names of the axes, the kind, whether a gather may cast to the compute dtype, and how often it is used.

    `passes` is how often a token comes to the parameter, in the mean: less than 1 in a block that tokens leave out,
    more in one that they pass several times. `used` is the share of it that a token uses when it comes: less than 1 for
    the experts of a mixture. A parameter of the pattern that is `shared` is one for all repeats: it has no axis of
    them.

    Not a tuple: JAX takes a tuple for a subtree, and this is a leaf in trees of facts, which are nested like the
    parameters.
    """

    names: tuple[str | None, ...]
    kind: Kind
    cast: bool
    used: float = 1.0
    passes: float = 1.0
    shared: bool = False

    @property
    def in_stack(self) -> bool:
        return self.names[:1] == (STACK,)

    @property
    def leading(self) -> int:
        """The number of axes before those of one parameter: of the stack, and of experts."""
        return len(self.names) - len(self.of_one(STACK).of_one(EXPERTS).names)

    @property
    def decays(self) -> bool:
        """Whether weight decay applies to it."""
        return self.kind in (Kind.MATRIX, Kind.TABLE)

    def stacked(self, over: str = STACK) -> "Axes":
        """Return the facts of a stack of such parameters; the same facts for one that the repeats of a stack share."""
        return self if self.shared and over == STACK else replace(self, names=(over, *self.names))

    def of_one(self, over: str) -> "Axes":
        """Return the facts of one parameter of a stack over this axis; the same facts where there is none."""
        return replace(self, names=self.names[1:]) if self.names[:1] == (over,) else self
