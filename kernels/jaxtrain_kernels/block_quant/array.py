"""A quantized array: a pytree of codes and scales, with how it was quantized as its static part."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxtrain_kernels.block_quant.formats import Format


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Blocks of `sizes[i]` neighbours along the axis `axes[i]`, counted from the end; the last of an axis may be short.

    From the end, so that a leading axis can be added, mapped or scanned over without a thought.
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
    """Codes in the shape of the array, and for each block its greatest magnitude and, with FP8, its exponent.

    Shards like the array: where a shard holds whole blocks, the scales split with the codes. Saves and restores as the
    arrays in it.
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
        """Return the bytes a device holds that packs 4-bit codes in pairs."""
        bits = 4 if self.codes.dtype == jnp.int4 else 8
        per_block = math.prod(self.scales.shape) * 4 * (1 if self.exponents is None else 2)
        return math.prod(self.codes.shape) * bits / 8 + per_block
