"""What waits in a residual slot from F to B: what every layer keeps, or the input of the chunk alone.

With `ChunkInput` (stage remat; Huang et al., 2019, arXiv:1811.06965) B first runs the chunk forward once more. What its
layers keep then lies in memory for one microbatch at a time, and only the inputs for all that are on their way. Where
the backward is cut, B passes it on to W with the values that it defers, so that W runs nothing again.

All of this is used inside the region of a stage. `kept` are its buffers of residual slots, one row after another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.pipeline.slots import Arrays, at, put_all, put_if


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerValues:
    """Keep what the layers keep, which `model.remat` decides: a slot has a row a layer."""

    def rows(self, longest: int) -> int:
        """Return the rows of a slot, where chunks have at most `longest` layers."""
        return longest

    def row(self, x: jax.Array, values: Arrays) -> Arrays:
        """Return the shapes of a row, from those of a layer's input and of what it keeps."""
        return values

    def enter(self, kept: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        """Take the input of a chunk; a slot of -1 is none."""
        return kept

    def write(self, kept: Arrays, values: Arrays, row: jax.Array) -> Arrays:
        """Take what one layer of the chunk keeps."""
        return put_all(kept, values, row)

    def recall(self, kept: Arrays, slot: jax.Array, row: jax.Array, again: Callable) -> tuple[Arrays, jax.Array]:
        """Return where B finds the layers' values, and the row of the first; `again` makes them from the input."""
        return kept, row

    def passed_on(self, values: Arrays) -> Arrays:
        """Return what of one layer's values B has to pass on to W."""
        return []

    def read(self, kept: Arrays, row: jax.Array, passed: Arrays) -> Arrays:
        """Return one layer's values for W."""
        return at(kept, row)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInput:
    """Keep the chunk's input. B runs its layers but the last once more and keeps then what `model.remat` says."""

    def rows(self, longest: int) -> int:
        return 1

    def row(self, x: jax.Array, values: Arrays) -> Arrays:
        return [jax.eval_shape(jnp.squeeze, x)]

    def enter(self, kept: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        return [put_if(kept[0], jnp.squeeze(x), slot)]

    def write(self, kept: Arrays, values: Arrays, row: jax.Array) -> Arrays:
        return kept

    def recall(self, kept: Arrays, slot: jax.Array, row: jax.Array, again: Callable) -> tuple[Arrays, jax.Array]:
        return again(kept[0][slot]), jnp.zeros_like(row)

    def passed_on(self, values: Arrays) -> Arrays:
        return values

    def read(self, kept: Arrays, row: jax.Array, passed: Arrays) -> Arrays:
        return passed


Keep = LayerValues | ChunkInput
