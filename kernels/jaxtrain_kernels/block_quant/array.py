"""A quantized array: a pytree of codes and scales, whose static part says how it was quantized."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxtrain_kernels.block_quant.formats import Format


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Blocks of `sizes[i]` neighbours along the axis `axes[i]`; the last block of an axis may be shorter.

    Axes are counted from the end, so that they stay right when a leading axis is added, mapped or scanned over.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]

    def __post_init__(self):
        if len(self.sizes) != len(self.axes) or not self.sizes:
            raise ValueError(f"block={self.sizes}, axis={self.axes}: give one size an axis")
        if min(self.sizes) < 1:
            raise ValueError(f"block={self.sizes}: a block has at least one element")
        if max(self.axes) >= 0 or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axis={self.axes}: axes are counted from the end (-1 is the last), each once")

    def per_axis(self, rank: int) -> tuple[int, ...]:
        """Return the block's extent along every axis of an array."""
        extents = [1] * rank
        for size, axis in zip(self.sizes, self.axes, strict=True):
            extents[axis] = size
        return tuple(extents)

    def counts(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of blocks along every axis: the shape of the scales."""
        return tuple(-(-n // extent) for n, extent in zip(shape, self.per_axis(len(shape)), strict=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class QuantizedArray:
    """Codes in the shape of the array, and for each block its scale and, with expanded FP8, its exponent.

    It shards like the array: if a shard holds whole blocks, the scales are split with the codes. A checkpoint saves and
    restores the arrays in it.
    """

    codes: Num[Array, "..."]
    scales: Float[Array, "..."]
    exponents: Float[Array, "..."] | None
    format: Format = field(metadata={"static": True})
    blocks: Blocks = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def stored_bytes(self) -> float:
        """Return the bytes on a device that packs 4-bit codes in pairs."""
        bits = 4 if self.codes.dtype == jnp.int4 else 8
        per_block = math.prod(self.scales.shape) * 4 * (1 if self.exponents is None else 2)
        return math.prod(self.codes.shape) * bits / 8 + per_block
