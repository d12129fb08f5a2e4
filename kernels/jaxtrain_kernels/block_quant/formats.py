"""Formats: the arithmetic between a number in [-1, 1] and its code.

A format's `encode` takes numbers divided by the scale of their block and returns codes in a wide type, which are then
narrowed to `dtype`. `decode` takes codes in the wide type. Both are elementwise arithmetic without tables, so the same
code runs under XLA and inside the kernels. With `noise`, uniform in [0, 1), rounding is stochastic: away from zero
(NormalFloat4: up) with the probability that keeps the mean.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxtrain_kernels.block_quant.dynamic_map import (
    at_or_below,
    bits_as_float,
    float_as_bits,
    magnitude,
    published,
    select,
)

Numbers = Float[Array, "..."]
Codes = Num[Array, "..."]

NF4_VALUES = (  # Dettmers et al. (2023), arXiv:2305.14314, appendix E
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def _signed(magnitudes: Codes, like: Numbers) -> Codes:
    return jnp.where(like < 0, -magnitudes, magnitudes)


def _round(steps: Numbers, noise: Numbers | None) -> Numbers:
    """Round numbers >= 0 to whole ones: to the nearest (ties to even), or up where the noise is below the fraction."""
    if noise is None:
        return jnp.round(steps)
    whole = jnp.floor(steps)
    return whole + (noise < steps - whole).astype(jnp.float32)


class _Format:
    """What formats share."""

    __slots__ = ()
    wide: ClassVar[np.dtype] = np.dtype(np.int32)

    @property
    def expands(self) -> bool:
        """Whether blocks carry an exponent."""
        return False

    @property
    def octaves(self) -> float:
        """The logarithm to base 2 of the greatest code over the smallest, of a format that expands."""
        raise NotImplementedError

    @property
    def least(self) -> float:
        """The smallest value above 0."""
        raise NotImplementedError

    @property
    def zero(self) -> int:
        """The code of 0."""
        return 0


class _Integer(_Format):
    __slots__ = ()
    steps: ClassVar[int]

    @property
    def least(self) -> float:
        return 1 / self.steps

    def encode(self, y: Numbers, noise: Numbers | None) -> Codes:
        return _signed(_round(jnp.abs(y) * float(self.steps), noise), y).astype(jnp.int32)

    def decode(self, codes: Codes) -> Numbers:
        return codes.astype(jnp.float32) * np.float32(1 / self.steps)


@dataclass(frozen=True, slots=True)
class Int8(_Integer):
    """Codes -127 to 127 in even steps."""

    steps: ClassVar[int] = 127
    dtype: ClassVar[np.dtype] = np.dtype(np.int8)


@dataclass(frozen=True, slots=True)
class Int4(_Integer):
    """Codes -7 to 7 in even steps, in JAX's int4: two a byte on devices that pack them."""

    steps: ClassVar[int] = 7
    dtype: ClassVar[np.dtype] = np.dtype(jnp.int4)


@dataclass(frozen=True, slots=True)
class DynamicMap(_Format):
    """The 256 values of Dettmers et al. (2022), arXiv:2110.02861. Without a sign: twice as dense, negatives become 0.

    A tie goes to the lower value, as in bitsandbytes.
    """

    signed: bool = True
    dtype: ClassVar[np.dtype] = np.dtype(np.uint8)

    @property
    def least(self) -> float:
        return float(published(self.signed)[128 if self.signed else 1])

    @property
    def zero(self) -> int:
        return 127 if self.signed else 0

    def encode(self, y: Numbers, noise: Numbers | None) -> Codes:
        size = jnp.abs(y) if self.signed else jnp.maximum(y, 0.0)
        below = at_or_below(size, self.signed)
        if noise is not None:
            below = below - (magnitude(below, self.signed) > size).astype(jnp.int32)
        low, high = magnitude(below, self.signed), magnitude(below + 1, self.signed)
        if noise is None:
            # Of two equally near values the lower one wins: the smaller magnitude above 0, the larger one below 0.
            over, under = high - size, size - low
            up = (over < under) | ((over == under) & (y < 0))
        else:
            up = noise < (size - low) / (high - low)
        q = below + up.astype(jnp.int32)
        return 127 + _signed(jnp.minimum(q, jnp.where(y < 0, 127, 128)), y) if self.signed else q - 1

    def decode(self, codes: Codes) -> Numbers:
        if not self.signed:
            return magnitude(codes + 1, False)
        signed = codes - 127
        value = magnitude(jnp.abs(signed), True)
        return jnp.where(signed < 0, -value, value)


@dataclass(frozen=True, slots=True)
class NormalFloat4(_Format):
    """Sixteen quantiles of a normal distribution, 0 among them. Dettmers et al. (2023), arXiv:2305.14314, appendix E.

    Codes are -8 to 7, in int4: TensorStore, which writes checkpoints, has no uint4.
    """

    dtype: ClassVar[np.dtype] = np.dtype(jnp.int4)

    @property
    def least(self) -> float:
        return NF4_VALUES[8]

    @property
    def zero(self) -> int:
        return -1

    def encode(self, y: Numbers, noise: Numbers | None) -> Codes:
        values = np.array(NF4_VALUES, np.float32)
        bounds = (values[:-1] + values[1:]) / np.float32(2) if noise is None else values[1:]
        code = jnp.zeros(y.shape, jnp.int32)
        for bound in bounds:
            passed = y > float(bound) if noise is None else y >= float(bound)
            code = code + passed.astype(jnp.int32)
        if noise is not None:
            code = jnp.minimum(code, 14)
            low, high = select(NF4_VALUES, code), select(NF4_VALUES, code + 1)
            code = code + (noise < (y - low) / (high - low)).astype(jnp.int32)
        return code - 8

    def decode(self, codes: Codes) -> Numbers:
        return select(NF4_VALUES, codes + 8)


class _Float8(_Format):
    __slots__ = ()
    expanded: bool
    wide: ClassVar[np.dtype] = np.dtype(np.float32)
    greatest: ClassVar[float]
    least_normal: ClassVar[float]
    mantissa_bits: ClassVar[int]

    @property
    def expands(self) -> bool:
        return self.expanded

    @property
    def least(self) -> float:
        return self.least_normal * 2.0**-self.mantissa_bits / self.greatest

    @property
    def octaves(self) -> float:
        """The logarithm to base 2 of the greatest code over the smallest."""
        return -math.log2(self.least)

    def encode(self, y: Numbers, noise: Numbers | None) -> Codes:
        size = jnp.minimum(jnp.abs(y) * self.greatest, self.greatest)
        power = bits_as_float(float_as_bits(size) & 0x7F800000)
        quantum = jnp.maximum(power, self.least_normal) * 2.0**-self.mantissa_bits
        return _signed(jnp.minimum(_round(size / quantum, noise) * quantum, self.greatest), y)

    def decode(self, codes: Codes) -> Numbers:
        return codes.astype(jnp.float32) * np.float32(1 / self.greatest)


@dataclass(frozen=True, slots=True)
class Float8E4M3(_Float8):
    """Four bits of exponent, three of mantissa; `expanded` as in Xi et al. (2025, COAT), arXiv:2410.19313, section 4.

    Expansion stores sign(y) |y|^k with k = log(greatest / smallest code) / log(greatest / smallest of the block but 0),
    so that every block uses the whole range of the format. A narrow block gains precision; in a wide one, of up to 100
    octaves, nothing becomes 0. Numbers out of range saturate.
    """

    expanded: bool = True
    dtype: ClassVar[np.dtype] = np.dtype(jnp.float8_e4m3fn)
    greatest: ClassVar[float] = 448.0
    least_normal: ClassVar[float] = 2.0**-6
    mantissa_bits: ClassVar[int] = 3


@dataclass(frozen=True, slots=True)
class Float8E5M2(_Float8):
    """Five bits of exponent, two of mantissa; otherwise as Float8E4M3."""

    expanded: bool = True
    dtype: ClassVar[np.dtype] = np.dtype(jnp.float8_e5m2)
    greatest: ClassVar[float] = 57344.0
    least_normal: ClassVar[float] = 2.0**-14
    mantissa_bits: ClassVar[int] = 2


Format = Int8 | Int4 | DynamicMap | NormalFloat4 | Float8E4M3 | Float8E5M2
FORMATS = (Int8, Int4, DynamicMap, NormalFloat4, Float8E4M3, Float8E5M2)
