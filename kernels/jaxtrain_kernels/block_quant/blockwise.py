"""Numbers of a block to codes and back, whatever way the blocks lie in the array at hand.

The portable form and the kernels share these lines and differ in their `Layout`: how a block is reduced, and how its
one number is spread over its elements again.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxtrain_kernels.block_quant.formats import Format

FLOAT32_MAX = float(np.finfo(np.float32).max)
TINY = 2.0**-126  # below it a scale counts as 0: its reciprocal overflows, and devices flush it
LARGEST = 2.0**126  # the greatest scale: the reciprocal of a greater one is flushed to 0, and with it the whole block
GREATEST_EXPONENT = 128.0
MOST_OCTAVES = 100.0  # of a block, from its greatest to its smallest number but 0

Numbers = Float[Array, "..."]


class Layout(Protocol):
    """How blocks lie in an array."""

    def greatest(self, x: Numbers) -> Numbers: ...

    def least(self, x: Numbers) -> Numbers: ...

    def spread(self, per_block: Numbers) -> Numbers: ...


class Coded(NamedTuple):
    """Codes in a format's wide type, with a scale and, where the format expands, an exponent a block."""

    codes: Num[Array, "..."]
    scales: Numbers
    exponents: Numbers | None


def encode(x: Numbers, format: Format, layout: Layout, *, noise: Numbers | None = None, lifted: bool = False) -> Coded:
    """Quantize. `lifted`: what is above 0 never becomes 0, but the format's smallest value."""
    x = x.astype(jnp.float32)
    known = jnp.abs(x) < jnp.inf  # false for NaN too
    sizes = jnp.where(known, jnp.abs(x), 0.0)
    scales = scale(layout.greatest(sizes))
    per_scale = layout.spread(reciprocal(scales))
    huge = jnp.where(x < 0, -FLOAT32_MAX, FLOAT32_MAX)
    y = jnp.where(known, x, jnp.where(x == x, huge, 0.0))
    y = jnp.clip(y * per_scale, -1.0, 1.0)
    if lifted and not format.expands:  # an expanded block has nothing that rounds to 0
        y = jnp.where(y > 0, jnp.maximum(y, format.least), y)
    exponents = None
    if format.expands:
        sizes = jnp.where(known, jnp.abs(y), 0.0)
        exponents = exponent(format, layout.least(jnp.where(sizes > 0, sizes, 1.0)))
        y = power(y, layout.spread(exponents))
    return Coded(format.encode(y, noise), scales, exponents)


def decode(coded: Coded, format: Format, layout: Layout) -> Numbers:
    """Return the numbers that the codes stand for."""
    y = format.decode(coded.codes.astype(format.wide))
    if coded.exponents is not None:
        y = power(y, layout.spread(1.0 / coded.exponents))
    return y * layout.spread(coded.scales)


def scale(greatest: Numbers) -> Numbers:
    """Return the scale of a block from its greatest magnitude: the same, within what has a reciprocal."""
    return jnp.where(greatest < TINY, 0.0, jnp.minimum(greatest, LARGEST))


def reciprocal(scales: Numbers) -> Numbers:
    """Return 1 / scale, 0 for 0."""
    return jnp.where(scales > 0, 1.0 / scales, 0.0)


def exponent(format: Format, least: Numbers) -> Numbers:
    """Return the k of a block's expansion from the smallest of its normalised magnitudes but 0."""
    octaves = -jnp.log2(jnp.maximum(least, 2.0**-MOST_OCTAVES))
    return format.octaves / jnp.clip(octaves, format.octaves / GREATEST_EXPONENT, MOST_OCTAVES)


def power(y: Numbers, k: Numbers) -> Numbers:
    """Return sign(y) |y|^k."""
    size = jnp.abs(y)
    raised = jnp.where(size > 0, jnp.exp2(k * jnp.log2(jnp.where(size > 0, size, 1.0))), 0.0)
    return jnp.where(y < 0, -raised, raised)
