"""Pallas for TPU: the whole step for one slice of blocks after another, as in block_quant/tpu.py.

Parameter, gradient and codes are read once; update and codes are written once, the codes in place.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxtrain_kernels.adamw_8bit.rule import AdamW, AdamWStep, new_moments, update
from jaxtrain_kernels.block_quant import tpu, view
from jaxtrain_kernels.block_quant.array import QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import decode, encode


def refuses(parameter: Array, gradient: Array, m: QuantizedArray, v: QuantizedArray, s: Array, *, rule: AdamW):
    """Return why the kernel cannot take the call."""
    return tpu.refuses(parameter.shape, m.blocks, 4)


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
    tiles = view.view_of(parameter.shape, m.blocks)
    slices = tpu.Slices(tiles)
    state = [array for moment in (m, v) for array in _arrays(moment, tiles, slices)]
    specs = [slices.numbers() if x.shape == slices.shapes()[0] else slices.scales() for x in state]
    matrices = [tiles.matrix(x, slices.multiple) for x in (parameter, gradient)]
    new, *state = tpu.call(
        functools.partial(_step, rule=rule, formats=(m.format, v.format), slices=slices),
        slices,
        "adamw_8bit",
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *[slices.numbers()] * 2, *specs],
        out_specs=[slices.numbers(), *specs],
        out_shape=[tpu.out(x.shape, x.dtype, parameter) for x in (matrices[0], *state)],
        input_output_aliases={3 + index: 1 + index for index in range(len(state))},
    )(s, *matrices, *state)
    each = len(state) // 2
    return AdamWStep(tiles.array(new), _moment(m, tiles, state[:each]), _moment(v, tiles, state[each:]))


def _arrays(moment: QuantizedArray, tiles: view.View, slices: tpu.Slices) -> list[Array]:
    per_block = [one for one in (moment.scales, moment.exponents) if one is not None]
    return [
        tiles.matrix(moment.codes, slices.multiple, filled=moment.format.zero),  # so that padding decodes to 0
        *(tiles.scales(one, slices.multiple) for one in per_block),
    ]


def _moment(old: QuantizedArray, tiles: view.View, arrays: list[Array]) -> QuantizedArray:
    codes, scales, *exponents = arrays
    return QuantizedArray(
        codes=tiles.array(codes),
        scales=tiles.per_block(scales),
        exponents=tiles.per_block(exponents[0]) if exponents else None,
        format=old.format,
        blocks=old.blocks,
    )


def _step(s_ref, p_ref, g_ref, *refs, rule: AdamW, formats, slices: tpu.Slices):
    counts = [2 + format.expands for format in formats]
    ins, (update_ref, *outs) = refs[: sum(counts)], refs[sum(counts) :]
    old, new = (((x[: counts[0]]), (x[counts[0] :])) for x in (ins, outs))
    scalars = s_ref[0], s_ref[1], s_ref[2]

    def step(index, columns, carry):
        p, g = p_ref[:, columns].astype(jnp.float32), g_ref[:, columns].astype(jnp.float32)
        held = [
            decode(tpu.coded_slice(slices, codes, per_block, index, columns), format, slices)
            for (codes, *per_block), format in zip(old, formats, strict=True)
        ]
        moments = new_moments(rule, *held, g)
        update_ref[:, columns] = update(rule, *moments, p, scalars).astype(update_ref.dtype)
        found = []
        for moment, (codes, *_), format, lifted in zip(moments, new, formats, (False, True), strict=True):
            coded = encode(moment, format, slices, lifted=lifted)
            codes[:, columns] = coded.codes.astype(format.dtype)
            found += coded[1 : 2 + format.expands]
        return tuple(slices.put(row, index, one) for row, one in zip(carry, found, strict=True))

    rows = [ref for _, *per_block in new for ref in per_block]
    for ref, row in zip(rows, slices.each(step, tuple(jnp.zeros(ref.shape, jnp.float32) for ref in rows)), strict=True):
        ref[...] = row
