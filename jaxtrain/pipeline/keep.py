"""What waits in a residual slot from F to B: what every layer keeps, or the input of the chunk alone.

With `ChunkInput` (stage remat; Huang et al., 2019, arXiv:1811.06965) B first runs the chunk forward once more. What its
layers keep then lies in memory for one microbatch at a time, and only the inputs for all that are on their way. Where
the backward is cut, B passes it on to W with the values that it defers, so that W runs nothing again.

All of this is used inside the region of a stage. `slots` are its residual slots; `values` are what one layer keeps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxtrain.pipeline.slots import at, put_each, put_if

Arrays = list[jax.Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerValues:
    """Keep what the layers keep, which `model.remat` decides."""

    def shapes(self, longest: int, x, values: list) -> list[jax.ShapeDtypeStruct]:
        """Return what lies in a slot, from the shapes of a layer's input and of what it keeps."""
        return stacked(longest, values)

    def enter(self, slots: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        """Take the input of a chunk; a slot of -1 is none."""
        return slots

    def add(self, slots: Arrays, values: Arrays, slot: jax.Array, layer: jax.Array) -> Arrays:
        """Take what one layer of the chunk keeps."""
        return put_each(slots, values, slot, layer)

    def recall(self, slots: Arrays, slot: jax.Array, run_again: Callable) -> Callable[[jax.Array], Arrays]:
        """Return the function from a layer to what it kept; `run_again` makes that of all layers from the input."""
        return lambda layer: at(slots, slot, layer)

    def passed_on(self, values: list) -> list:
        """Return what of one layer's values B has to pass on to W."""
        return []

    def of_layer(self, slots: Arrays, slot: jax.Array, layer: jax.Array, passed: Arrays) -> Arrays:
        """Return one layer's values for W."""
        return at(slots, slot, layer)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInput:
    """Keep the chunk's input; B runs its layers but the last once more, and then what `model.remat` says."""

    def shapes(self, longest: int, x, values: list) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(x.shape, x.dtype)]

    def enter(self, slots: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        return [put_if(slots[0], x, slot)]

    def add(self, slots: Arrays, values: Arrays, slot: jax.Array, layer: jax.Array) -> Arrays:
        return slots

    def recall(self, slots: Arrays, slot: jax.Array, run_again: Callable) -> Callable[[jax.Array], Arrays]:
        values = run_again(slots[0][slot])
        return lambda layer: at(values, layer)

    def passed_on(self, values: list) -> list:
        return values

    def of_layer(self, slots: Arrays, slot: jax.Array, layer: jax.Array, passed: Arrays) -> Arrays:
        return passed


Keep = LayerValues | ChunkInput


def stacked(longest: int, values: list) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of values of as many layers as the longest chunk has."""
    return [jax.ShapeDtypeStruct((longest, *value.shape), value.dtype) for value in values]
