"""The 8-bit dynamic map: 256 values that are dense near 0, and the arithmetic that finds them without a table.

Dettmers et al. (2022), arXiv:2110.02861, section 2 and appendix F. There are seven decades, each cut into pieces of
equal length, the upper ones into more. With 2^e <= q < 2^(e+1), magnitude number q is the middle of piece q - 2^e of
2^e in its decade:

    10^(e-E) * (0.1 + 0.9 * (q - 2^e + 1/2) / 2^e)        E = 6 with a sign, 7 without

so q is like a small float. Signed codes are 127 + q and 127 - q, 0 to 255; unsigned ones are q - 1. Code 255 is 1. The
published values were computed by float32 sums and are a few ulp off that formula. Corrections of two bits a value, held
in a few words, give the published bits. So devices with slow gathers from tables of 256 (TPUs) get the same bits, too.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

LEAST_ULPS = -1  # the ulps that a correction of 0 adds to the closed form
STEEPER = 1.0 + 2.0**-20  # moves the bound of a decade up, beyond the rounding of the values next to it


@functools.cache
def published(signed: bool) -> np.ndarray:
    """Return the 256 values in order, bit for bit those of the authors."""
    positive = np.concatenate([_decade(e, 6 if signed else 7) for e in range(0 if signed else 1, 7 if signed else 8)])
    negative = -positive[::-1] if signed else positive[:0]
    return np.concatenate([negative, [0.0], positive, [1.0]]).astype(np.float32)


def _decade(e: int, top: int) -> np.ndarray:
    """Return the values of one decade: middles of 2^e + 1 points, each taken from its nearer end and rounded once."""
    pieces = 2**e
    i, start = np.arange(pieces + 1), np.float32(0.1)
    step = np.float64((np.float32(1) - start) / np.float32(pieces))
    points = np.where(2 * i < pieces + 1, start + step * i, 1.0 - step * i[::-1]).astype(np.float32)
    return (points[:-1] + points[1:]) / np.float32(2) * np.float32(10.0 ** (e - top))


class Arithmetic(NamedTuple):
    """Constants of the closed form, one for each decade; `corrections` are by q, 16 entries of two bits a word."""

    top: int
    lowest: int  # the q of the value 0
    factors: tuple[float, ...]
    corrections: tuple[int, ...]
    bounds: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def first(self) -> int:
        """Return the exponent of the smallest decade."""
        return self.top + 1 - len(self.factors)


@functools.cache
def arithmetic(signed: bool) -> Arithmetic:
    """Return the constants for the signed or the unsigned map."""
    top, first = (6, 0) if signed else (7, 1)
    values = np.concatenate([np.zeros(2**first, np.float32), published(signed)[128 if signed else 1 : 255]])
    ulps, factors = np.zeros(2 ** (top + 1), np.int64), []
    for e in range(first, top + 1):
        q = np.arange(2**e, 2 ** (e + 1))
        factor, ulps[q] = _factor(values[q], _numerators(q), 10.0 ** (e - top - 1) / 2.0 ** (e + 1))
        factors.append(factor)
    words = (ulps.reshape(-1, 16) << (2 * np.arange(16))).sum(axis=1)
    starts = values[[2**e for e in range(first, top + 1)]].astype(np.float64)
    before = values[[2**e - 1 for e in range(first, top + 1)]].astype(np.float64)
    slopes = [10.0 ** (top - e) * 2.0**e / 0.9 for e in range(first, top + 1)]
    return Arithmetic(
        top=top,
        lowest=2**first - 1,
        factors=tuple(factors),
        corrections=tuple(int(word) for word in words.astype(np.uint32).view(np.int32)),
        bounds=tuple(float(bound) for bound in (starts + before) / 2 * STEEPER),
        slopes=tuple(slopes),
    )


def _numerators(q: np.ndarray) -> np.ndarray:
    return (18 * q + 9 - 16 * 2 ** np.floor(np.log2(q)).astype(np.int64)).astype(np.float32)


def _factor(values: np.ndarray, numerators: np.ndarray, near: float) -> tuple[float, np.ndarray]:
    """Return the float32 whose products with the numerators are 2 ulp below to 1 above the values, and by how many."""
    nearest = np.float32(near).view(np.int32)
    for away in sorted(range(-8, 9), key=abs):
        factor = (nearest + np.int32(away)).view(np.float32)
        ulps = values.view(np.int32).astype(np.int64) - (numerators * factor).view(np.int32)
        if ulps.min() >= LEAST_ULPS and ulps.max() <= LEAST_ULPS + 3:
            return float(factor), ulps - LEAST_ULPS
    raise AssertionError(ulps)


def magnitude(q: Int[Array, "..."], signed: bool) -> Float[Array, "..."]:
    """Return published value number q; 1 above the last one."""
    a = arithmetic(signed)
    whole = q.astype(jnp.float32)
    power = bits_as_float(float_as_bits(whole) & 0x7F800000)  # 2^e
    factor = jnp.full_like(whole, a.factors[0])
    for e, later in enumerate(a.factors[1:], a.first + 1):
        factor = jnp.where(q >= 2**e, later, factor)
    product = (18.0 * whole + (9.0 - 16.0 * power)) * factor
    ulps = ((select(a.corrections, q >> 4) >> ((q & 15) << 1)) & 3) + LEAST_ULPS
    value = bits_as_float(float_as_bits(product) + ulps)
    value = jnp.where(q <= a.lowest, 0.0, value)
    return jnp.where(q >= 2 ** (a.top + 1), 1.0, value)


def at_or_below(x: Float[Array, "..."], signed: bool) -> Int[Array, "..."]:
    """Return the number of the value that is nearest to x >= 0, or of the one before it."""
    a = arithmetic(signed)
    slope, low = jnp.full_like(x, 0.0), jnp.full_like(x, float(a.lowest))
    for e, (bound, steep) in enumerate(zip(a.bounds, a.slopes, strict=True), a.first):
        slope, low = jnp.where(x > bound, steep, slope), jnp.where(x > bound, 2.0**e, low)
    # Less 1/64, so that rounding never gives a number that is too high.
    guess = jnp.where(x > a.bounds[0], x * slope + (low * (8.0 / 9.0) - 1.0 / 64.0), low)
    last = jnp.where(x > a.bounds[0], 2.0 * low - 1.0, low)
    return jnp.clip(guess, low, last).astype(jnp.int32)


def select(values: Sequence[int | float], index: Int[Array, "..."]) -> Num[Array, "..."]:
    """Return values[index] by a tree of selections, for a number of values that is a power of two."""
    kind = jnp.int32 if isinstance(values[0], int) else jnp.float32
    found = [jnp.full(index.shape, value, kind) for value in values]
    bit = 0
    while len(found) > 1:
        odd = ((index >> bit) & 1) == 1
        found = [jnp.where(odd, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
        bit += 1
    return found[0]


def float_as_bits(x: Float[Array, "..."]) -> Int[Array, "..."]:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def bits_as_float(x: Int[Array, "..."]) -> Float[Array, "..."]:
    return jax.lax.bitcast_convert_type(x, jnp.float32)
