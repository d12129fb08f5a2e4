"""Mosaic GPU: a warpgroup goes over 64 blocks twice. At a time it takes a piece of each, of at most 32 columns.

The first pass finds the greatest number of each block (and the smallest, if the format expands). The second pass
encodes; it reads from the cache. One number a block is a vector of 64, and a block is a row of a piece. Threads share
nothing but the reduction of a row. A block of several rows has pieces of each of its rows.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxtrain_kernels.block_quant import view
from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import Coded, decode, encode, reciprocal, scale
from jaxtrain_kernels.block_quant.formats import Format
from jaxtrain_kernels.varying import vary, varying

BLOCKS, WIDTH = 64, 32  # the blocks of a program, the columns of a piece
# A thread holds four neighbours: 16 bytes of float32 at once, and 4 bytes of codes, the smallest copy.
MATRIX, VECTOR = plgpu.Layout.WGMMA_UPCAST_2X, plgpu.Layout.WGMMA_UPCAST_2X.reduce(1)


@dataclass(frozen=True, slots=True)
class Pieces:
    """How the matrix is laid out in memory: [rows / a, a, columns / b, b / piece, piece]."""

    view: view.View

    @property
    def piece(self) -> int:
        return min(self.view.b, WIDTH)

    @property
    def shape(self) -> tuple[int, ...]:
        v = self.view
        rows, columns = v.padded
        if v.a == 1:  # blocks of one row are consecutive in memory, whatever their row
            rows, columns = 1, rows * columns
        blocks = -(-columns // (v.b * BLOCKS)) * BLOCKS
        return rows // v.a, v.a, blocks, v.b // self.piece, self.piece

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[0], self.shape[2] // BLOCKS

    def split(self, x: Array, *, filled: int = 0) -> Array:
        x = self.view.matrix(x, filled=filled)
        if self.view.a == 1:
            x = x.reshape(1, -1)
        rows, a, blocks, pieces, piece = self.shape
        missing = blocks * pieces * piece - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, missing)), constant_values=filled) if missing else x
        return x.reshape(self.shape)

    def join(self, x: Array) -> Array:
        rows, columns = self.view.padded
        x = x.reshape(self.shape[0] * self.shape[1], -1)
        x = x[:, : rows * columns].reshape(rows, columns) if self.view.a == 1 else x[:, :columns]
        return self.view.array(x)

    def split_scales(self, x: Array) -> Array:
        x = x.reshape(self.shape[0], -1)
        missing = self.shape[2] - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, missing))) if missing else x

    def join_scales(self, x: Array) -> Array:
        rows, columns = self.view.padded
        count = columns // self.view.b * (rows if self.view.a == 1 else 1)
        return x[:, :count].reshape(self.view.counts)

    def each(self, step: Callable, carry=None):
        """Return the carry after `carry = step(position, carry)` for every piece of this program's blocks."""
        own = pl.ds(jax.lax.axis_index("column") * BLOCKS, BLOCKS)
        _, a, _, pieces, _ = self.shape

        def body(index, carry):
            position = (jax.lax.axis_index("row"), index // pieces, own, index % pieces)
            return step(position, carry)

        return jax.lax.fori_loop(0, a * pieces, body, carry)

    def read(self, ref, position) -> Array:
        return plgpu.load(ref.at[position], layout=MATRIX, optimized=False)

    def write(self, ref, position, x: Array) -> None:
        _store(ref.at[position], x)

    def read_scales(self, ref) -> Array:
        own = pl.ds(jax.lax.axis_index("column") * BLOCKS, BLOCKS)
        return plgpu.load(ref.at[jax.lax.axis_index("row"), own], layout=VECTOR, optimized=False)

    def write_scales(self, ref, x: Array) -> None:
        own = pl.ds(jax.lax.axis_index("column") * BLOCKS, BLOCKS)
        _store(ref.at[jax.lax.axis_index("row"), own], x)


@dataclass(frozen=True)
class Piece:
    """The layout of a piece, for decoding."""

    piece: int

    def spread(self, per_block: Array) -> Array:
        return jax.lax.broadcast_in_dim(per_block, (BLOCKS, self.piece), (0,))


@dataclass(frozen=True)
class Known(Piece):
    """The layout of a piece, for encoding: the first pass has found each block's greatest and smallest number."""

    found: tuple[Array, Array]

    def greatest(self, _: Array) -> Array:
        return self.found[0]

    def least(self, _: Array) -> Array:
        greatest, least = self.found
        return least * reciprocal(scale(greatest))


def _store(ref, x: Array) -> None:
    if jax.__version_info__ < (0, 12):  # it has no other store, and this one takes any width
        ref[...] = x
    else:
        plgpu.store(ref, x, optimized=False)


def extremes() -> tuple[Array, Array]:
    """Return the initial greatest and smallest magnitude of blocks, before any piece was seen."""
    return vector(0.0), vector(3e38)


def seen(x: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the greatest and the smallest magnitude above 0, with those of one more piece."""
    sizes = jnp.where(jnp.abs(x) < jnp.inf, jnp.abs(x), 0.0)
    least = jnp.where(sizes > 0, sizes, 3e38)
    return jnp.maximum(found[0], jnp.max(sizes, axis=1)), jnp.minimum(found[1], -jnp.max(-least, axis=1))


def vector(value: float) -> Array:
    return plgpu.layout_cast(jnp.full((BLOCKS,), value, jnp.float32), VECTOR)


def refuses(shape: tuple[int, ...], blocks: Blocks, formats: tuple[Format, ...]) -> list[str]:
    """Return why the kernels cannot take an array."""
    if reasons := view.refuses(shape, blocks):
        return reasons
    v = view.view_of(shape, blocks)
    if v.b % 8 or (v.b > WIDTH and v.b % WIDTH):
        reasons.append(f"blocks of {v.b} columns, not of 8, 16, 24 or a multiple of {WIDTH}")
    reasons += [f"4-bit codes ({format})" for format in formats if format.dtype == jnp.int4]
    return reasons


def refuses_quantize(x: Array, *, format: Format, blocks: Blocks, noise: Array | None) -> list[str]:
    return refuses(x.shape, blocks, (format,))


def refuses_dequantize(q: QuantizedArray) -> list[str]:
    return refuses(q.shape, q.blocks, (q.format,))


def call(kernel: Callable, pieces: Pieces, name: str, outputs: list[jax.ShapeDtypeStruct]) -> Callable:
    """Return the kernel over all blocks, one warpgroup a program."""
    run = plgpu.kernel(kernel, out_type=outputs, grid=pieces.grid, grid_names=("row", "column"), kernel_name=name)
    # Inside a shard_map, kernels return arrays without its varying axes.
    return lambda *arrays: vary(varying(arrays[0]), *run(*arrays))


@functools.partial(jax.jit, static_argnames=("format", "blocks"))
def quantize(x: Float[Array, "..."], *, format: Format, blocks: Blocks, noise: Float[Array, "..."] | None):
    """Quantize; see api.quantize."""
    pieces = Pieces(view.view_of(x.shape, blocks))
    inputs = [pieces.split(one) for one in (x, noise) if one is not None]
    per_block = jax.ShapeDtypeStruct((pieces.shape[0], pieces.shape[2]), jnp.float32)
    outputs = [jax.ShapeDtypeStruct(pieces.shape, format.dtype), *[per_block] * (1 + format.expands)]

    def kernel(x_ref, *refs):
        noise_ref, (codes_ref, *per_block_refs) = (None, refs) if noise is None else (refs[0], refs[1:])
        found = pieces.each(
            lambda position, found: seen(pieces.read(x_ref, position).astype(jnp.float32), found), extremes()
        )
        known = Known(pieces.piece, found)

        def step(position, _):
            drawn = None if noise is None else pieces.read(noise_ref, position)
            coded = encode(pieces.read(x_ref, position), format, known, noise=drawn)
            pieces.write(codes_ref, position, coded.codes.astype(format.dtype))
            return coded[1 : 2 + format.expands]

        per_block = pieces.each(step, (vector(0.0),) * (1 + format.expands))
        for ref, one in zip(per_block_refs, per_block, strict=True):
            pieces.write_scales(ref, one)

    codes, scales, *exponents = call(kernel, pieces, "block_quantize", outputs)(*inputs)
    return QuantizedArray(
        codes=pieces.join(codes),
        scales=pieces.join_scales(scales),
        exponents=pieces.join_scales(exponents[0]) if exponents else None,
        format=format,
        blocks=blocks,
    )


@jax.jit
def dequantize(q: QuantizedArray) -> Float[Array, "..."]:
    """Return float32 numbers; see api.dequantize."""
    pieces = Pieces(view.view_of(q.shape, q.blocks))
    per_block = [pieces.split_scales(one) for one in (q.scales, q.exponents) if one is not None]

    def kernel(codes_ref, *refs):
        *per_block_refs, out_ref = refs
        scales, *exponents = (pieces.read_scales(ref) for ref in per_block_refs)

        def step(position, carry):
            coded = Coded(pieces.read(codes_ref, position), scales, exponents[0] if exponents else None)
            pieces.write(out_ref, position, decode(coded, q.format, Piece(pieces.piece)))
            return carry

        pieces.each(step, jnp.int32(0))

    outputs = [jax.ShapeDtypeStruct(pieces.shape, jnp.float32)]
    return pieces.join(call(kernel, pieces, "block_dequantize", outputs)(pieces.split(q.codes), *per_block)[0])
