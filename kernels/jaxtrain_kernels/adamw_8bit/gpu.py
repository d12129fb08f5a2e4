"""Mosaic GPU: the whole step for 64 blocks a program, in two passes over them as in block_quant/gpu.py.

The first pass finds the greatest of the new moments of each block. The second one computes the moments again and writes
update and codes; it reads from the cache. So registers hold no more than one piece.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain_kernels.adamw_8bit.rule import AdamW, AdamWStep, new_moments, update
from jaxtrain_kernels.block_quant import gpu, view
from jaxtrain_kernels.block_quant.array import QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import Coded, decode, encode


def refuses(parameter: Array, gradient: Array, m: QuantizedArray, v: QuantizedArray, s: Array, *, rule: AdamW):
    """Return why the kernel cannot take the call."""
    return gpu.refuses(parameter.shape, m.blocks, (m.format, v.format))


@functools.partial(jax.jit, static_argnames="rule")
def adamw_8bit(
    parameter: Float[Array, "..."],
    gradient: Float[Array, "..."],
    m: QuantizedArray,
    v: QuantizedArray,
    s: Float[Array, "3"],
    *,
    rule: AdamW,
) -> AdamWStep:
    """Return the step; see api.adamw_8bit."""
    pieces = gpu.Pieces(view.view_of(parameter.shape, m.blocks))
    formats = m.format, v.format
    state = [array for moment in (m, v) for array in _arrays(moment, pieces)]
    matrices = [pieces.split(x) for x in (parameter, gradient)]

    def kernel(s_ref, p_ref, g_ref, *refs):
        old, (update_ref, *new) = _by_moment(refs[: len(state)], formats), refs[len(state) :]
        scalars = s_ref[0], s_ref[1], s_ref[2]
        per_block = [[pieces.read_scales(ref) for ref in refs[1:]] for refs in old]

        def moments(position):
            held = [
                decode(
                    Coded(pieces.read(codes, position), one[0], *(one[1:] or [None])), format, gpu.Piece(pieces.piece)
                )
                for (codes, *_), one, format in zip(old, per_block, formats, strict=True)
            ]
            return new_moments(rule, *held, pieces.read(g_ref, position).astype(jnp.float32))

        def find_extremes(position, found):
            return tuple(gpu.seen(x, one) for x, one in zip(moments(position), found, strict=True))

        found = pieces.each(find_extremes, (gpu.extremes(), gpu.extremes()))

        def step(position, _):
            both, rows = moments(position), []
            p = pieces.read(p_ref, position).astype(jnp.float32)
            pieces.write(update_ref, position, update(rule, *both, p, scalars).astype(parameter.dtype))
            for x, one, (codes, *_), format, lifted in zip(
                both, found, _by_moment(new, formats), formats, (False, True), strict=True
            ):
                coded = encode(x, format, gpu.Known(pieces.piece, one), lifted=lifted)
                pieces.write(codes, position, coded.codes.astype(format.dtype))
                rows += coded[1 : 2 + format.expands]
            return tuple(rows)

        refs_of_rows = [ref for refs in _by_moment(new, formats) for ref in refs[1:]]
        for ref, row in zip(refs_of_rows, pieces.each(step, (gpu.vector(0.0),) * len(refs_of_rows)), strict=True):
            pieces.write_scales(ref, row)

    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (matrices[0], *state)]
    new, *state = gpu.call(kernel, pieces, "adamw_8bit", outputs)(s, *matrices, *state)
    return AdamWStep(
        pieces.join(new),
        *(_moment(old, pieces, list(arrays)) for old, arrays in zip((m, v), _by_moment(state, formats), strict=True)),
    )


def _by_moment(arrays, formats) -> tuple:
    """Return codes, scales and exponents of the first moment and of the second."""
    first = 2 + formats[0].expands
    return arrays[:first], arrays[first:]


def _arrays(moment: QuantizedArray, pieces: gpu.Pieces) -> list[Array]:
    per_block = [one for one in (moment.scales, moment.exponents) if one is not None]
    codes = pieces.split(moment.codes, filled=moment.format.zero)  # so that padding decodes to 0
    return [codes, *(pieces.split_scales(one) for one in per_block)]


def _moment(old: QuantizedArray, pieces: gpu.Pieces, arrays: list[Array]) -> QuantizedArray:
    codes, scales, *exponents = arrays
    return QuantizedArray(
        codes=pieces.join(codes),
        scales=pieces.join_scales(scales),
        exponents=pieces.join_scales(exponents[0]) if exponents else None,
        format=old.format,
        blocks=old.blocks,
    )
