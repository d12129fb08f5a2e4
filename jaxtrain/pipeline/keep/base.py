"""What waits in a residual slot from F to B: what every layer keeps, or the input of the chunk alone.

With `ChunkInput` (stage remat; Huang et al., 2019, arXiv:1811.06965) B first runs the chunk forward once more. What its
layers keep then lies in memory for one microbatch at a time, and only the inputs for all that are on their way. Where
the backward is cut, B passes it on to W with the values that it defers, so that W runs nothing again.

All of this is used inside the region of a stage. `kept` are its buffers of residual slots, one row after another.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax

from jaxtrain.pipeline.slots import Arrays
from jaxtrain.technique import Technique


class Keep(Technique):
    """What a residual slot of a pipeline holds. `runs_again`: B runs the forward of its chunk once more."""

    __slots__ = ()
    runs_again: ClassVar[bool] = False

    @abstractmethod
    def rows(self, longest: int) -> int:
        """Return the rows of a slot, where chunks have at most `longest` layers."""

    @abstractmethod
    def row(self, x: jax.Array, values: Arrays) -> Arrays:
        """Return the shapes of a row, from those of a layer's input and of what it keeps."""

    @abstractmethod
    def enter(self, kept: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        """Take the input of a chunk; a slot of -1 is none."""

    @abstractmethod
    def write(self, kept: Arrays, values: Arrays, row: jax.Array) -> Arrays:
        """Take what one layer of the chunk keeps."""

    @abstractmethod
    def recall(self, kept: Arrays, slot: jax.Array, row: jax.Array, again: Callable) -> tuple[Arrays, jax.Array]:
        """Return where B finds the layers' values, and the row of the first; `again` makes them from the input."""

    @abstractmethod
    def passed_on(self, values: Arrays) -> Arrays:
        """Return what of one layer's values B has to pass on to W."""

    @abstractmethod
    def read(self, kept: Arrays, row: jax.Array, passed: Arrays) -> Arrays:
        """Return one layer's values for W."""
