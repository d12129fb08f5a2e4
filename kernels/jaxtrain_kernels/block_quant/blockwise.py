"""From the numbers of blocks to codes and back, for any layout of the blocks in an array.

The implementation for XLA and the kernels share this code. They differ in their `Layout`: how a block is reduced, and
how the number of a block is spread over its elements.
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxtrain_kernels.block_quant.formats import Format

FLOAT32_MAX = float(np.finfo(np.float32).max)
TINY = 2.0**-126  # a smaller scale counts as 0: its reciprocal overflows, and devices flush it
LARGEST = 2.0**126  # the greatest scale: devices flush the reciprocal of a greater one to 0, and so the whole block
GREATEST_EXPONENT = 128.0
MOST_OCTAVES = 100.0  # of a block, from its smallest number above 0 to its greatest

Numbers = Float[Array, "..."]


class Spread(Protocol):
    """The part of a layout that `decode` needs."""

    def spread(self, per_block: Numbers) -> Numbers:
        """Return the number of each block at all of its elements."""
        ...


class Layout(Spread, Protocol):
    """How blocks are laid out in an array."""

    def greatest(self, x: Numbers) -> Numbers:
        """Return the greatest number of each block."""
        ...

    def least(self, x: Numbers) -> Numbers:
        """Return the smallest number of each block."""
        ...


class Coded(NamedTuple):
    """Codes in a format's wide type, with a scale and, if the format expands, an exponent for each block."""

    codes: Num[Array, "..."]
    scales: Numbers
    exponents: Numbers | None


def encode(x: Numbers, format: Format, layout: Layout, *, noise: Numbers | None = None, lifted: bool = False) -> Coded:
    """Return codes, scales and exponents. With `lifted` numbers above 0 round to the smallest value, never to 0."""
    x = x.astype(jnp.float32)
    known = jnp.abs(x) < jnp.inf  # false for NaN, too
    sizes = jnp.where(known, jnp.abs(x), 0.0)
    scales = scale(layout.greatest(sizes))
    per_scale = layout.spread(reciprocal(scales))
    huge = jnp.where(x < 0, -FLOAT32_MAX, FLOAT32_MAX)
    y = jnp.where(known, x, jnp.where(x == x, huge, 0.0))
    y = jnp.clip(y * per_scale, -1.0, 1.0)
    if lifted and not format.expands:  # in an expanded block nothing rounds to 0
        y = jnp.where(y > 0, jnp.maximum(y, format.least), y)
    exponents = None
    if format.expands:
        sizes = jnp.where(known, jnp.abs(y), 0.0)
        exponents = exponent(format, layout.least(jnp.where(sizes > 0, sizes, 1.0)))
        y = power(y, layout.spread(exponents))
    return Coded(format.encode(y, noise), scales, exponents)


def decode(coded: Coded, format: Format, layout: Spread) -> Numbers:
    """Return the numbers that the codes stand for."""
    y = format.decode(coded.codes.astype(format.wide))
    if coded.exponents is not None:
        y = power(y, layout.spread(1.0 / coded.exponents))
    return y * layout.spread(coded.scales)


def scale(greatest: Numbers) -> Numbers:
    """Return the scale of a block: its greatest magnitude, within the range of numbers that have a reciprocal."""
    return jnp.where(greatest < TINY, 0.0, jnp.minimum(greatest, LARGEST))


def reciprocal(scales: Numbers) -> Numbers:
    """Return 1 / scale, 0 for 0."""
    return jnp.where(scales > 0, 1.0 / scales, 0.0)


def exponent(format: Format, least: Numbers) -> Numbers:
    """Return the exponent k of a block's expansion, from its smallest normalised magnitude above 0."""
    octaves = -jnp.log2(jnp.maximum(least, 2.0**-MOST_OCTAVES))
    return format.octaves / jnp.clip(octaves, format.octaves / GREATEST_EXPONENT, MOST_OCTAVES)


def power(y: Numbers, k: Numbers) -> Numbers:
    """Return sign(y) |y|^k."""
    size = jnp.abs(y)
    raised = jnp.where(size > 0, jnp.exp2(k * jnp.log2(jnp.where(size > 0, size, 1.0))), 0.0)
    return jnp.where(y < 0, -raised, raised)
