"""Mosaic GPU for Hopper: one warpgroup a tile, products on the tensor cores (wgmma), operands copied ahead of them.

Rows are first laid out so that every group begins a new block of 128 rows and has at least one; what its rows do not
fill is zeros (Gale et al., 2022, arXiv:2211.15841, section 5). A block then belongs to one group, so no product needs a
mask, and the gradient of the weights sums over whole blocks. An empty group sums over zeros. The layout reads and
writes the rows once more than the products need.

JAX's own kernels of this kind (`ragged_dot_mgpu`, `transposed_ragged_dot_mgpu`) need no such layout. They are not
called: one of them asks the first device of the process for its number of cores, which ahead-of-time compilation does
not have, and a row that is not finite reaches the gradient of the groups that share a block with it. Left out: float32,
of which tensor cores read 11 bits; codes; several warpgroups a tile.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.block_quant import QuantizedArray
from jaxtrain_kernels.grouped_matmul.groups import Bounds, Weights, bounds, without_rest
from jaxtrain_kernels.varying import vary, varying

DTYPES = (jnp.float16, jnp.bfloat16)
BLOCK = 128  # rows of a group
WIDTH = 64  # of what a product sums over at once, and of the tiles that tensor cores read
STAGES = 4  # steps whose operands are in shared memory at once


def refuses(x: Array, other: Weights) -> Sequence[str]:
    """Return why the kernels cannot take the call; `other` are weights or the gradient of the products."""
    if isinstance(other, QuantizedArray):
        return ["it has no weights in codes"]
    reasons = []
    if x.dtype not in DTYPES:
        reasons.append(f"x is {x.dtype}, not float16 or bfloat16, as tensor cores take them")
    return reasons + [f"a side of {n} is no multiple of {WIDTH}" for n in (x.shape[-1], other.shape[-1]) if n % WIDTH]


class Layout(NamedTuple):
    """Blocks of rows of one group each: N blocks, in the order of the groups.

    `row` is the row at every place of the blocks, T where there is none; `place` is the place of every row.
    """

    group: Int[Array, " N"]
    row: Int[Array, " places"]
    place: Int[Array, " T"]
    first: Int[Array, " G"]
    blocks: Int[Array, " G"]


def laid_out(of: Bounds, rows: int) -> Layout:
    """Return the layout; there are as many blocks as groups of any sizes need."""
    starts, ends = of
    count = jnp.maximum((ends - starts + BLOCK - 1) // BLOCK, 1)
    behind = jnp.cumsum(count)
    first, most = behind - count, len(starts) - 1
    block, row = jnp.arange(rows // BLOCK + len(starts)), jnp.arange(rows)
    group = jnp.minimum(jnp.sum(behind[None] <= block[:, None], axis=1), most)
    at = (starts[group] + (block - first[group]) * BLOCK)[:, None] + jnp.arange(BLOCK)[None]
    at = jnp.where(at < ends[group][:, None], at, rows).reshape(-1)
    own = jnp.minimum(jnp.sum(ends[None] <= row[:, None], axis=1), most)
    place = first[own] * BLOCK + row - starts[own]
    return Layout(*(x.astype(jnp.int32) for x in (group, at, place, first, count)))


def product(x: Float[Array, "T K"], weights: Float[Array, "G D F"], sizes: Int[Array, " G"], *, transposed: bool):
    """Return the products [T, F]; with `transposed`, of [T, F] with the transposed matrices."""
    of = bounds(sizes, len(x))
    layout, N = laid_out(of, len(x)), weights.shape[1 if transposed else 2]
    columns = _side(N)

    def body(group_ref, x_ref, weights_ref, y_ref, y_smem):
        block, column = jax.lax.axis_index("block"), jax.lax.axis_index("column")
        rows = _spec((BLOCK, WIDTH), lambda k: (block, k))
        if transposed:
            matrix = _spec((columns, WIDTH), lambda k: (column, k))
        else:
            matrix = _spec((WIDTH, columns), lambda k: (k, column))

        def sum_of(total):
            def add(_, a, b):
                plgpu.wgmma(total, a, b.transpose((1, 0)) if transposed else b)

            _pipeline(add, x.shape[1] // WIDTH, [rows, matrix])(x_ref, weights_ref.at[group_ref[block]])
            return total[...]

        tile = pl.run_scoped(sum_of, plgpu.ACC((BLOCK, columns), jnp.float32))
        _write(tile, y_smem, y_ref.at[pl.ds(block * BLOCK, BLOCK), pl.ds(column * columns, columns)])

    whole = _in_places(x, layout)
    y = _call(
        body,
        "grouped_matmul_transposed" if transposed else "grouped_matmul",
        grid={"column": N // columns, "block": len(layout.group)},
        output=jax.ShapeDtypeStruct((len(whole), N), x.dtype),
        tile=(BLOCK, columns),
    )(layout.group, whole, weights)
    return without_rest(y[layout.place], of.ends)


def outer(x: Float[Array, "T D"], dy: Float[Array, "T F"], sizes: Int[Array, " G"]) -> Float[Array, "G D F"]:
    """Return the transposed products."""
    layout, D, F = laid_out(bounds(sizes, len(x)), len(x)), x.shape[1], dy.shape[1]
    tall, wide = _side(D), _side(F)

    def body(first_ref, count_ref, x_ref, dy_ref, dw_ref, dw_smem):
        group, d, f = (jax.lax.axis_index(name) for name in ("group", "row", "column"))
        steps = BLOCK // WIDTH
        begin = first_ref[group] * steps
        specs = [_spec((WIDTH, tall), lambda t: (begin + t, d)), _spec((WIDTH, wide), lambda t: (begin + t, f))]

        def sum_of(total):
            def add(_, a, b):
                plgpu.wgmma(total, a.transpose((1, 0)), b)

            _pipeline(add, count_ref[group] * steps, specs)(x_ref, dy_ref)
            return total[...]

        tile = pl.run_scoped(sum_of, plgpu.ACC((tall, wide), jnp.float32))
        _write(tile, dw_smem, dw_ref.at[group, pl.ds(d * tall, tall), pl.ds(f * wide, wide)])

    return _call(
        body,
        "transposed_grouped_matmul",
        grid={"column": F // wide, "row": D // tall, "group": len(sizes)},
        output=jax.ShapeDtypeStruct((len(sizes), D, F), x.dtype),
        tile=(tall, wide),
    )(layout.first, layout.blocks, _in_places(x, layout), _in_places(dy, layout))


def _in_places(x: Float[Array, "T D"], layout: Layout) -> Float[Array, "places D"]:
    return x.at[layout.row].get(mode="fill", fill_value=0)


def _side(size: int) -> int:
    """Return the side of a tile."""
    return 2 * WIDTH if size % (2 * WIDTH) == 0 else WIDTH


def _transforms() -> tuple:
    """Return the layout in which tensor cores read a matrix."""
    # mypy takes an unimplemented method of their base class for an abstract one.
    tiling = plgpu.TilingTransform((8, WIDTH))  # type: ignore[abstract]
    return tiling, plgpu.SwizzleTransform(2 * WIDTH)  # type: ignore[abstract]


def _spec(shape: tuple[int, int], index: Callable) -> plgpu.BlockSpec:
    # A product runs on while the next step's operands are copied, so a step's operands are let go one step later.
    return plgpu.BlockSpec(shape, index, transforms=_transforms(), delay_release=1)


def _pipeline(add: Callable, steps, specs: list) -> Callable:
    return plgpu.emit_pipeline(add, grid=(steps,), in_specs=specs, max_concurrent_steps=STAGES)


def _write(tile: Array, smem, out) -> None:
    smem[...] = tile.astype(smem.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem, out)
    plgpu.wait_smem_to_gmem(0)


def _call(body: Callable, name: str, *, grid: dict[str, int], output: jax.ShapeDtypeStruct, tile: tuple) -> Callable:
    """Return a kernel that writes one array, tile by tile."""
    run = plgpu.kernel(
        body,
        out_type=output,
        scratch_types=[plgpu.SMEM(tile, output.dtype, transforms=_transforms())],
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        kernel_name=name,
    )
    # Inside a shard_map, kernels return arrays without its varying axes.
    return lambda *arrays: vary(varying(arrays[0]), run(*arrays))[0]
