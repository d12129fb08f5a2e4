"""Quantize and dequantize by block.

Block-wise scales are from Dettmers et al. (2022), arXiv:2110.02861; blocks of two axes (32 x 32), whose transpose needs
no new codes, from Xi et al. (2024, Jetfire), arXiv:2403.12422. Left out: double quantization of the scales, and packing
of 4-bit codes by hand (the device packs JAX's int4).
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from jaxtrain_kernels.block_quant import gpu, reference, tpu, xla
from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.formats import FORMATS, Format
from jaxtrain_kernels.choice import Implementation, choose
from jaxtrain_kernels.varying import alike

QUANTIZE = (
    Implementation(name="xla", run=xla.quantize),
    Implementation(name="tpu", run=tpu.quantize, refuses=tpu.refuses_quantize, proven=False),
    Implementation(name="gpu", run=gpu.quantize, refuses=gpu.refuses_quantize, proven=False),
    Implementation(name="reference", run=reference.quantize),
)
DEQUANTIZE = (
    Implementation(name="xla", run=xla.dequantize),
    Implementation(name="tpu", run=tpu.dequantize, refuses=tpu.refuses_dequantize, proven=False),
    Implementation(name="gpu", run=gpu.dequantize, refuses=gpu.refuses_dequantize, proven=False),
    Implementation(name="reference", run=reference.dequantize),
)


def quantize(
    x: Float[Array, "..."],
    *,
    format: Format,
    block: int | tuple[int, ...] = 256,
    axis: int | tuple[int, ...] = -1,
    key: Key[Array, ""] | None = None,
    implementation: str | None = None,
) -> QuantizedArray:
    """Return the codes of the numbers of each block, divided by the block's scale: its greatest magnitude.

    Rounds to the nearest value. With a `key` it rounds stochastically, so that the mean over keys is x. There are two
    exceptions. With expanded FP8 the mean of the expanded number is exact, and that of x is off by up to some
    thousandths. The signed dynamic map ends at -0.993 of the scale, and lower numbers become that.

    Multiplying x by a power of two multiplies the scales and changes no code. NaN becomes 0. Infinity becomes the
    greatest finite number of its block, with its sign; scales ignore it. A block whose magnitudes are all below 2^-126
    becomes zeros; magnitudes above 2^126 count as 2^126. Computed in float32. Not differentiable: no gradient passes.

        q = quantize(x, format=Int8(), block=256)                             # along the last axis
        q = quantize(x, format=DynamicMap(), block=(32, 32), axis=(-2, -1))   # squares

    Raises:
        ValueError: x is no float array of at most 32 bits, or blocks or axes do not fit it.
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"x of dtype {x.dtype}: give float32, bfloat16 or float16")
    if not isinstance(format, FORMATS):
        raise ValueError(f"format={format!r}: give one of {', '.join(f'{kind.__name__}()' for kind in FORMATS)}")
    blocks = blocks_of(block, axis, x.ndim)
    noise = None if key is None else jax.random.uniform(key, x.shape, jnp.float32)
    chosen = choose("block_quant.quantize", QUANTIZE, implementation, x, format=format, blocks=blocks, noise=noise)
    x = jax.lax.stop_gradient(x)
    if noise is not None:
        x, noise = alike(x, noise)
    return chosen.run(x, format=format, blocks=blocks, noise=noise)


def dequantize(
    q: QuantizedArray, *, dtype: DTypeLike = jnp.float32, implementation: str | None = None
) -> Float[Array, "..."]:
    """Return the numbers that the codes stand for, computed in float32. Not differentiable: no gradient passes.

    Raises:
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    chosen = choose("block_quant.dequantize", DEQUANTIZE, implementation, q)
    return chosen.run(jax.lax.stop_gradient(q)).astype(dtype)


def blocks_of(block: int | tuple[int, ...], axis: int | tuple[int, ...], rank: int) -> Blocks:
    """Return the blocks of an array with `rank` axes.

    Raises:
        ValueError: the axes do not fit the array.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -rank <= a < rank for a in axes):
        raise ValueError(f"axis={axis}: the array has {rank} axes")
    return Blocks(
        sizes=(block,) if isinstance(block, int) else tuple(block), axes=tuple((a % rank) - rank for a in axes)
    )
