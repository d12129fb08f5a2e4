"""Pallas for TPU: a program takes some rows of tiles and goes over their columns, a slice of lanes at a time.

A slice is one block wide, or 128 lanes of several narrow blocks. Blocks of several rows are reduced over sublanes
first. All scales of a program are in one row. Lanes cannot be addressed, so the scales of a slice are written into and
read from this row by comparing lane numbers. Codes are computed, not looked up (dynamic_map.py). Noise is read from
memory, not drawn on the chip, so that codes depend on the key alone.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxtrain_kernels.block_quant import view
from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import Coded, decode, encode
from jaxtrain_kernels.block_quant.formats import Format

LANES, SUBLANES, CODE_ROWS = 128, 8, 32  # a tile of bytes has 32 rows
VMEM_BYTES = 48 * 2**20


@dataclass(frozen=True, slots=True)
class Slices:
    """How a program cuts its part of the matrix into slices, and the `Layout` of one slice.

    The number of a block is in every lane of the block, [rows / a, width].
    """

    view: view.View

    @property
    def width(self) -> int:
        return max(self.view.b, LANES)

    @property
    def rows(self) -> int:
        return min(self.view.padded[0], max(CODE_ROWS, SUBLANES * self.view.a))

    @property
    def columns(self) -> int:
        """Return the columns of a program: all of them, or as many as have a row of LANES scales."""
        return min(-(-self.view.columns // self.width) * self.width, LANES * self.view.b)

    @property
    def per_slice(self) -> int:
        return self.width // self.view.b

    @property
    def multiple(self) -> tuple[int, int]:
        return 1, self.width

    def grid(self) -> tuple[int, int]:
        rows, columns = self.view.padded
        return pl.cdiv(rows, self.rows), pl.cdiv(-(-columns // self.width) * self.width, self.columns)

    def numbers(self) -> pl.BlockSpec:
        return pl.BlockSpec((self.rows, self.columns), lambda i, j: (i, j))

    def scales(self) -> pl.BlockSpec:
        return pl.BlockSpec((self.rows // self.view.a, self.columns // self.view.b), lambda i, j: (i, j))

    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of the padded matrix and of its scales."""
        rows, columns = self.view.padded
        columns = -(-columns // self.width) * self.width
        return (rows, columns), (rows // self.view.a, columns // self.view.b)

    # -- the layout of a slice ----------------------------------------------------------------------------------

    def greatest(self, x: Array) -> Array:
        return self._reduce(x, jnp.max, -jnp.inf)

    def least(self, x: Array) -> Array:
        return self._reduce(x, jnp.min, jnp.inf)

    def _reduce(self, x: Array, over, neutral: float) -> Array:
        a = self.view.a
        if a > 1:
            x = over(x.reshape(x.shape[0] // a, a, self.width), axis=1)
        found = jnp.zeros_like(x)
        for number, inside in enumerate(self._insides(x.shape)):
            own = over(jnp.where(inside, x, neutral) if self.per_slice > 1 else x, axis=1, keepdims=True)
            found = jnp.where(inside, own, found) if number else jnp.broadcast_to(own, x.shape)
        return found

    def spread(self, per_block: Array) -> Array:
        a, rows = self.view.a, per_block.shape[0]
        if a == 1:
            return per_block
        return jnp.broadcast_to(per_block[:, None], (rows, a, self.width)).reshape(rows * a, self.width)

    def _insides(self, shape: tuple[int, ...]) -> Iterator[Array]:
        """Return which lanes belong to each block of a slice."""
        block = jax.lax.broadcasted_iota(jnp.int32, shape, 1) // self.view.b
        return (block == number for number in range(self.per_slice))

    # -- scales in and out of their row -------------------------------------------------------------------------

    def take(self, scales: Array, index: Array) -> Array:
        """Return the numbers of slice `index` from those of the program, each in every lane of its block."""
        lane = jax.lax.broadcasted_iota(jnp.int32, scales.shape, 1)
        shape = (scales.shape[0], self.width)
        found = jnp.zeros(shape, jnp.float32)
        for number, inside in enumerate(self._insides(shape)):
            own = jnp.where(lane == index * self.per_slice + number, scales, 0.0)
            found = jnp.where(inside, jnp.sum(own, axis=1, keepdims=True), found)
        return found

    def put(self, scales: Array, index: Array, per_block: Array) -> Array:
        """Return the program's numbers with those of slice `index` replaced."""
        lane = jax.lax.broadcasted_iota(jnp.int32, scales.shape, 1)
        for number in range(self.per_slice):
            first = number * self.view.b
            own = per_block[:, first : first + 1]
            scales = jnp.where(lane == index * self.per_slice + number, own, scales)
        return scales

    def each(self, step, carry):
        """Return the carry after `carry = step(index, columns, carry)` for every slice."""

        def body(index, carry):
            return step(index, pl.ds(pl.multiple_of(index * self.width, LANES), self.width), carry)

        return jax.lax.fori_loop(0, self.columns // self.width, body, carry)


def refuses(shape: tuple[int, ...], blocks: Blocks, arrays: int) -> list[str]:
    """Return why a kernel with so many matrices of 32 bits cannot take an array."""
    if reasons := view.refuses(shape, blocks):
        return reasons
    v = view.view_of(shape, blocks)
    if v.a > 1 and v.a % SUBLANES:
        reasons.append(f"blocks of {v.a} rows, not of one or a multiple of {SUBLANES}")
    if v.b % LANES and LANES % v.b:
        reasons.append(f"blocks of {v.b} columns: neither a multiple nor a divisor of {LANES}")
    if not reasons and 2 * 4 * arrays * Slices(v).rows * Slices(v).columns > VMEM_BYTES:
        reasons.append(f"blocks of {v.a} x {v.b} need more than {VMEM_BYTES >> 20} MiB on the chip")
    return reasons


def refuses_quantize(x: Array, *, format: Format, blocks: Blocks, noise: Array | None) -> list[str]:
    return refuses(x.shape, blocks, 3)


def refuses_dequantize(q: QuantizedArray) -> list[str]:
    return refuses(q.shape, q.blocks, 3)


def call(kernel, slices: Slices, name: str, **options):
    """Return the pallas_call of a kernel over a matrix."""
    return pl.pallas_call(
        kernel,
        grid=slices.grid(),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=VMEM_BYTES + 2**24
        ),
        name=name,
        **options,
    )


def out(shape: tuple[int, ...], dtype, like: Array) -> jax.ShapeDtypeStruct:
    """Return the type of an output that varies over the mesh axes of a shard_map as an input does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(like).manual_axis_type)


@functools.partial(jax.jit, static_argnames=("format", "blocks"))
def quantize(x: Float[Array, "..."], *, format: Format, blocks: Blocks, noise: Float[Array, "..."] | None):
    """Quantize; see api.quantize."""
    v = view.view_of(x.shape, blocks)
    slices = Slices(v)
    numbers, per_block = slices.shapes()
    inputs = [v.matrix(one, slices.multiple) for one in (x, noise) if one is not None]
    outputs = [out(numbers, format.dtype, x), *[out(per_block, jnp.float32, x)] * (1 + format.expands)]
    codes, scales, *exponents = call(
        functools.partial(_quantize, format=format, slices=slices, noisy=noise is not None),
        slices,
        "block_quantize",
        in_specs=[slices.numbers()] * len(inputs),
        out_specs=[slices.numbers(), *[slices.scales()] * (1 + format.expands)],
        out_shape=outputs,
    )(*inputs)
    return QuantizedArray(
        codes=v.array(codes),
        scales=v.per_block(scales),
        exponents=v.per_block(exponents[0]) if exponents else None,
        format=format,
        blocks=blocks,
    )


def _quantize(x_ref, *refs, format: Format, slices: Slices, noisy: bool):
    noise_ref, (codes_ref, *per_block_refs) = (refs[0], refs[1:]) if noisy else (None, refs)

    def step(index, columns, carry):
        noise = noise_ref[:, columns] if noisy else None
        coded = encode(x_ref[:, columns], format, slices, noise=noise)
        codes_ref[:, columns] = coded.codes.astype(format.dtype)
        return tuple(slices.put(held, index, new) for held, new in zip(carry, coded[1:], strict=False))

    carry = slices.each(step, tuple(jnp.zeros(ref.shape, jnp.float32) for ref in per_block_refs))
    for ref, held in zip(per_block_refs, carry, strict=True):
        ref[...] = held


@jax.jit
def dequantize(q: QuantizedArray) -> Float[Array, "..."]:
    """Return float32 numbers; see api.dequantize."""
    v = view.view_of(q.shape, q.blocks)
    slices = Slices(v)
    per_block = [v.scales(one, slices.multiple) for one in (q.scales, q.exponents) if one is not None]
    numbers = call(
        functools.partial(_dequantize, format=q.format, slices=slices),
        slices,
        "block_dequantize",
        in_specs=[slices.numbers(), *[slices.scales()] * len(per_block)],
        out_specs=slices.numbers(),
        out_shape=out(slices.shapes()[0], jnp.float32, q.codes),
    )(v.matrix(q.codes, slices.multiple), *per_block)
    return v.array(numbers)


def _dequantize(codes_ref, *refs, format: Format, slices: Slices):
    *per_block_refs, out_ref = refs

    def step(index, columns, _):
        out_ref[:, columns] = decode(coded_slice(slices, codes_ref, per_block_refs, index, columns), format, slices)
        return 0

    slices.each(step, 0)


def coded_slice(slices: Slices, codes_ref, per_block_refs, index: Array, columns: pl.Slice) -> Coded:
    """Return a slice of codes with the numbers of its blocks."""
    scales, *exponents = (slices.take(ref[...], index) for ref in per_block_refs)
    return Coded(codes_ref[:, columns], scales, exponents[0] if exponents else None)
