"""What a residual slot holds between F and B: the residuals of every repeat of a chunk, or the chunk's input alone.

With `ChunkInput` (stage remat; Huang et al., 2019, arXiv:1811.06965) B first recomputes the residuals: it runs the
forward of the chunk again. The residuals of the repeats then exist for one microbatch at a time; only the inputs exist
for all microbatches in flight. If the backward is split, B passes the residuals on to W together with the deferred
values, so W recomputes nothing.

All methods run inside the region of a stage. `slots` are its buffers of residual slots, `[slots * rows, ...]`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax

from jaxtrain.pipeline.slots import Arrays
from jaxtrain.technique import Technique


class Residuals(Technique):
    """What a residual slot of a pipeline holds. `recomputes`: B runs the forward of its chunk again."""

    __slots__ = ()
    recomputes: ClassVar[bool] = False

    @abstractmethod
    def rows(self, longest: int) -> int:
        """Return how many rows a slot has, if chunks have at most `longest` repeats."""

    @abstractmethod
    def row(self, x: jax.Array, residuals: Arrays) -> Arrays:
        """Return the shapes of a row, given those of a repeat's input and of its residuals."""

    @abstractmethod
    def store_input(self, slots: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        """Store the input of a chunk in a slot, if inputs are stored; slot -1 stores nothing."""

    @abstractmethod
    def store(self, slots: Arrays, residuals: Arrays, row: jax.Array) -> Arrays:
        """Store the residuals of one repeat in a row, if they are stored."""

    @abstractmethod
    def load(self, slots: Arrays, slot: jax.Array, row: jax.Array, recompute: Callable) -> tuple[Arrays, jax.Array]:
        """Return the residuals for B, and the row of the first repeat; `recompute` makes residuals from the input."""

    @abstractmethod
    def deferred(self, residuals: Arrays) -> Arrays:
        """Return which residuals of one repeat B has to pass on to W."""

    @abstractmethod
    def load_deferred(self, slots: Arrays, row: jax.Array, deferred: Arrays) -> Arrays:
        """Return the residuals of one repeat for W; `deferred` are those that B passed on."""
