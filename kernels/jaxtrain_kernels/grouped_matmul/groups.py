"""Which rows belong to which group, and a group's weights as a matrix.

Letters: T rows, G groups, D and F the sides of a group's matrix.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.block_quant import QuantizedArray, dequantize

Weights = Float[Array, "..."] | QuantizedArray  # of all groups, or of one


class Bounds(NamedTuple):
    """The first row of each group and the row behind its last one."""

    starts: Int[Array, " G"]
    ends: Int[Array, " G"]


def bounds(sizes: Int[Array, " G"], rows: int) -> Bounds:
    """Return the bounds of consecutive groups. No group goes beyond the last row, and a negative size counts as 0."""
    ends = jnp.minimum(jnp.cumsum(jnp.maximum(sizes, 0)), rows).astype(jnp.int32)
    return Bounds(jnp.pad(ends[:-1], (1, 0)), ends)


def matrices(weights: Weights, dtype: jnp.dtype) -> Float[Array, "..."]:
    """Return the weights in this dtype, dequantized if they are codes."""
    return dequantize(weights, dtype=dtype) if isinstance(weights, QuantizedArray) else weights.astype(dtype)


def without_rest(y: Float[Array, "T F"], ends: Int[Array, " G"]) -> Float[Array, "T F"]:
    """Return the rows, with 0 in those behind the last group, whatever they hold."""
    return jnp.where(jnp.arange(len(y))[:, None] < ends[-1], y, 0)
