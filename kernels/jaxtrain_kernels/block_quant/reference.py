"""The definition: split into blocks, divide by the greatest magnitude, take the nearest value of a table.

    scale = max |x|,  y = x / scale,  code = argmin |y - value[code]|,  x' = value[code] * scale

Stochastic rounding takes one of the two values around y, so that the mean is y.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import exponent, power, reciprocal
from jaxtrain_kernels.block_quant.dynamic_map import published
from jaxtrain_kernels.block_quant.formats import (
    NF4_VALUES,
    DynamicMap,
    Format,
    Int4,
    Int8,
    NormalFloat4,
)


def quantize(x: Float[Array, "..."], *, format: Format, blocks: Blocks, noise: Float[Array, "..."] | None):
    """Quantize; see api.quantize."""
    parts, inner = split(x.astype(jnp.float32), blocks)
    known = jnp.where(jnp.isfinite(parts), parts, 0.0)
    scales = jnp.max(jnp.abs(known), axis=inner, keepdims=True)
    # 1 / scale overflows for a smaller scale; for a greater one it is 0 on devices that flush subnormal numbers.
    scales = jnp.where(scales < 2.0**-126, 0.0, jnp.minimum(scales, 2.0**126))
    y = jnp.nan_to_num(parts, nan=0.0, posinf=jnp.finfo(jnp.float32).max, neginf=jnp.finfo(jnp.float32).min)
    y = jnp.clip(y * reciprocal(scales), -1.0, 1.0)
    exponents = None
    if format.expands:
        sizes = jnp.abs(jnp.where(jnp.isfinite(parts), y, 0.0))
        exponents = exponent(format, jnp.min(jnp.where(sizes > 0, sizes, 1.0), axis=inner, keepdims=True))
        y = power(y, exponents)
    codes = _encode(y, format, None if noise is None else split(noise, blocks)[0])
    return QuantizedArray(
        codes=join(codes, x.shape, blocks).astype(format.dtype),
        scales=jnp.squeeze(scales, inner),
        exponents=None if exponents is None else jnp.squeeze(exponents, inner),
        format=format,
        blocks=blocks,
    )


def dequantize(q: QuantizedArray) -> Float[Array, "..."]:
    """Return float32 numbers; see api.dequantize."""
    codes, inner = split(q.codes.astype(q.format.wide), q.blocks)
    y = _decode(codes, q.format)
    if q.exponents is not None:
        y = power(y, 1.0 / jnp.expand_dims(q.exponents, inner))
    return join(y * jnp.expand_dims(q.scales, inner), q.codes.shape, q.blocks)


def split(x: Array, blocks: Blocks) -> tuple[Array, tuple[int, ...]]:
    """Return the array as [n, b] along every axis, and which axes are inside blocks."""
    extents, counts = blocks.per_axis(x.ndim), blocks.counts(x.shape)
    padding = [(0, n * b - size) for n, b, size in zip(counts, extents, x.shape, strict=True)]
    pairs = [size for pair in zip(counts, extents, strict=True) for size in pair]
    return jnp.pad(x, padding).reshape(pairs), tuple(range(1, 2 * x.ndim, 2))


def join(x: Array, shape: tuple[int, ...], blocks: Blocks) -> Array:
    whole = [n * b for n, b in zip(blocks.counts(shape), blocks.per_axis(len(shape)), strict=True)]
    return x.reshape(whole)[tuple(slice(size) for size in shape)]


def _encode(y: Array, format: Format, noise: Array | None) -> Array:
    match format:
        case Int8() | Int4():
            return jnp.sign(y) * _whole(jnp.abs(y) * format.steps, noise)
        case DynamicMap(signed=True):
            if noise is None:
                return _nearest(y, published(True))
            q = _either(jnp.abs(y), published(True)[127:], noise)  # away from zero or towards it
            return jnp.where(y < 0, 127 - jnp.minimum(q, 127), 127 + q)
        case DynamicMap():
            y = jnp.maximum(y, 0.0)
            return _nearest(y, published(False)) if noise is None else _either(y, published(False), noise)
        case NormalFloat4():
            values = np.array(NF4_VALUES, np.float32)
            return (_nearest(y, values) if noise is None else _either(y, values, noise)) - 8
    z = jnp.clip(y * format.greatest, -format.greatest, format.greatest)
    if noise is None:
        return z.astype(format.dtype)
    values = np.arange(128, dtype=np.uint8).view(format.dtype).astype(np.float32)
    values = values[np.isfinite(values)]
    return jnp.sign(z) * jnp.asarray(values)[_either(jnp.abs(z), values, noise)]


def _whole(steps: Array, noise: Array | None) -> Array:
    if noise is None:
        return jnp.round(steps)
    return jnp.floor(steps) + (noise < steps - jnp.floor(steps))


def _nearest(y: Array, values: np.ndarray) -> Array:
    """Return the index of the nearest value; of two equally near ones, of the lower."""
    far = jnp.abs(y[..., None] - values.reshape((1,) * y.ndim + (-1,)))
    return jnp.argmin(far, axis=-1).astype(jnp.int32)


def _either(y: Array, values: np.ndarray, noise: Array) -> Array:
    """Return the index of the value below or of the one above, chosen by the noise."""
    below = jnp.clip(jnp.searchsorted(values, y, side="right") - 1, 0, len(values) - 2)
    low, high = jnp.asarray(values)[below], jnp.asarray(values)[below + 1]
    return below + (noise < (y - low) / (high - low)).astype(jnp.int32)


def _decode(codes: Array, format: Format) -> Array:
    match format:
        case Int8() | Int4():
            return codes.astype(jnp.float32) * np.float32(1 / format.steps)
        case DynamicMap():
            return jnp.asarray(published(format.signed))[codes]
        case NormalFloat4():
            return jnp.asarray(np.array(NF4_VALUES, np.float32))[codes + 8]
    return codes * np.float32(1 / format.greatest)
