"""Plain XLA: elementwise arithmetic around two reductions, which XLA fuses and, under a mesh, partitions."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import Coded, decode, encode
from jaxtrain_kernels.block_quant.formats import Format


@dataclass(frozen=True, slots=True)
class Split:
    """The `Layout` in which the inside of a block has axes of its own; the number of a block broadcasts over them."""

    inner: tuple[int, ...]

    def greatest(self, x: Array) -> Array:
        return jnp.max(x, axis=self.inner, keepdims=True)

    def least(self, x: Array) -> Array:
        return jnp.min(x, axis=self.inner, keepdims=True)

    def spread(self, per_block: Array) -> Array:
        return per_block


@functools.partial(jax.jit, static_argnames=("format", "blocks", "lifted"))
def quantize(
    x: Float[Array, "..."],
    *,
    format: Format,
    blocks: Blocks,
    noise: Float[Array, "..."] | None,
    lifted: bool = False,
) -> QuantizedArray:
    """Quantize; see api.quantize, and for `lifted` blockwise.encode."""
    split, inner = split_axes(x, blocks)
    noise = None if noise is None else split_axes(noise, blocks)[0]
    coded = encode(split, format, Split(inner), noise=noise, lifted=lifted)
    return QuantizedArray(
        codes=join_axes(coded.codes.astype(format.dtype), x.shape, blocks),
        scales=jnp.squeeze(coded.scales, inner),
        exponents=None if coded.exponents is None else jnp.squeeze(coded.exponents, inner),
        format=format,
        blocks=blocks,
    )


@jax.jit
def dequantize(q: QuantizedArray) -> Float[Array, "..."]:
    """Return float32 numbers; see api.dequantize."""
    codes, inner = split_axes(q.codes, q.blocks)
    exponents = None if q.exponents is None else jnp.expand_dims(q.exponents, inner)
    coded = Coded(codes, jnp.expand_dims(q.scales, inner), exponents)
    return join_axes(decode(coded, q.format, Split(inner)), q.codes.shape, q.blocks)


def split_axes(x: Array, blocks: Blocks) -> tuple[Array, tuple[int, ...]]:
    """Return the array with each blocked axis as [n, b], padded to whole blocks, and the axes inside blocks."""
    shape, inner, padding = [], [], []
    for size, n, extent in zip(x.shape, blocks.counts(x.shape), blocks.per_axis(x.ndim), strict=True):
        padding.append((0, n * extent - size))
        shape.append(n)
        if extent > 1:
            inner.append(len(shape))
            shape.append(extent)
    if any(more for _, more in padding):
        x = jnp.pad(x, padding)
    return x.reshape(shape), tuple(inner)


def join_axes(x: Array, shape: tuple[int, ...], blocks: Blocks) -> Array:
    """Return the array of split axes: the inverse of `split_axes`."""
    x = x.reshape([n * b for n, b in zip(blocks.counts(shape), blocks.per_axis(len(shape)), strict=True)])
    return x if x.shape == shape else x[tuple(slice(size) for size in shape)]
