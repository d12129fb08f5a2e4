"""The portable form: elementwise arithmetic around two reductions, which XLA fuses and, under a mesh, partitions."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.formats import Format, exponent, finite, normalise, power, reciprocal


def quantize(x: Float[Array, "..."], *, format: Format, blocks: Blocks, noise: Float[Array, "..."] | None):
    """Quantize; see api.quantize."""
    split, inner = split_axes(x, blocks)
    sizes = jnp.abs(finite(split))
    scales = jnp.max(sizes, axis=inner, keepdims=True)
    scales = jnp.where(scales < 2.0**-126, 0.0, scales)
    per_scale = reciprocal(scales)
    y, exponents = normalise(split, per_scale), None
    if format.expands:
        sizes = sizes * per_scale
        exponents = exponent(format, jnp.min(jnp.where(sizes > 0, sizes, 1.0), axis=inner, keepdims=True))
        y = power(y, exponents)
    codes = format.encode(y, None if noise is None else split_axes(noise, blocks)[0])
    return QuantizedArray(
        codes=join_axes(codes.astype(format.dtype), x.shape, blocks),
        scales=jnp.squeeze(scales, inner),
        exponents=None if exponents is None else jnp.squeeze(exponents, inner),
        format=format,
        blocks=blocks,
    )


def dequantize(q: QuantizedArray) -> Float[Array, "..."]:
    """Return float32 numbers; see api.dequantize."""
    codes, inner = split_axes(q.codes, q.blocks)
    y = q.format.decode(codes.astype(q.format.wide))
    if q.exponents is not None:
        y = power(y, 1.0 / jnp.expand_dims(q.exponents, inner))
    return join_axes(y * jnp.expand_dims(q.scales, inner), q.codes.shape, q.blocks)


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
    """Undo split_axes."""
    x = x.reshape([n * b for n, b in zip(blocks.counts(shape), blocks.per_axis(len(shape)), strict=True)])
    return x if x.shape == shape else x[tuple(slice(size) for size in shape)]
