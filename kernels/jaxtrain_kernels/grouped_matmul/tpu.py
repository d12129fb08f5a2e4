"""Pallas for TPU, in the manner of megablox (Gale et al., 2022, arXiv:2211.15841; JAX's Pallas examples).

Rows are cut into tiles without regard to groups. A *visit* is a group with one of the tiles that have rows of it, so a
tile on a border is visited by several groups, one after another. The grid goes along visits, and prefetched scalars say
which group and which tile a visit has, and where the group's rows begin and end. The products of a visit are kept in
those rows alone; the tile stays on the chip until its last visit. The gradient of the weights goes along the same
visits and sums over those of a group. There an empty group is visited once, to write zeros.

There are as many visits as there can be. Those beyond the last one repeat it: they fetch nothing and compute nothing.
Codes are dequantized tile by tile. Their scales come repeated along the columns, because lanes cannot be addressed.
Products of float32 are exact to float32.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.block_quant import QuantizedArray
from jaxtrain_kernels.block_quant.blockwise import Coded, decode
from jaxtrain_kernels.grouped_matmul.groups import Bounds, Weights, bounds, without_rest

DTYPES = (jnp.float32, jnp.bfloat16)
LANES, SUBLANES = 128, 8
ROWS, SIDE = 512, 512  # the most of a tile
MOST_CODE_ROWS = 2048  # of a tile of codes whose blocks are long


def refuses(x: Array, other: Weights) -> Sequence[str]:
    """Return why the kernels cannot take the call; `other` are weights or the gradient of the products."""
    reasons = []
    if x.dtype not in DTYPES:
        reasons.append(f"x is {x.dtype}, not float32 or bfloat16")
    reasons += [f"a side of {n} is no multiple of {LANES}" for n in (x.shape[-1], other.shape[-1]) if n % LANES]
    if isinstance(other, QuantizedArray) and not reasons:
        reasons += _refuses_codes(other)
    return reasons


def _refuses_codes(weights: QuantizedArray) -> list[str]:
    if weights.format.dtype.itemsize != 1 or weights.format.dtype == jnp.int4:
        return [f"codes in {weights.format}, not of 8 bits"]
    _, a, _ = weights.blocks.per_axis(3)
    if a % SUBLANES or weights.shape[1] % a or _side(weights.shape[1], a) > MOST_CODE_ROWS:
        return [f"blocks of {a} rows: not a multiple of {SUBLANES} that fits a tile of {weights.shape[1]} rows"]
    return []


class Visits(NamedTuple):
    """The group and the tile of every visit, and the rows of the tile, from `first` to `behind`, that the group has."""

    group: Int[Array, " V"]
    tile: Int[Array, " V"]
    first: Int[Array, " V"]
    behind: Int[Array, " V"]


def visits(of: Bounds, *, rows: int, tiles: int, empty: bool) -> Visits:
    """Return the visits in their order; with `empty`, an empty group has one, without rows."""
    starts, ends = of
    spanned = jnp.where(ends > starts, (ends - 1) // rows - starts // rows + 1, int(empty))
    behind = jnp.cumsum(spanned)  # each group's visits
    visit = jnp.minimum(jnp.arange(tiles + len(starts) - 1), jnp.maximum(behind[-1] - 1, 0))
    group = jnp.minimum(jnp.sum(behind[None] <= visit[:, None], axis=1), len(starts) - 1)
    tile = starts[group] // rows + visit - (behind - spanned)[group]
    tile = jnp.clip(tile, 0, tiles - 1)
    real = jnp.arange(len(visit)) < behind[-1]
    first, last = (jnp.clip(edge[group] - tile * rows, 0, rows) for edge in of)
    return Visits(*(x.astype(jnp.int32) for x in (group, tile, first, jnp.where(real, last, first))))


def product(x: Float[Array, "T K"], weights: Weights, sizes: Int[Array, " G"], *, transposed: bool):
    """Return the products [T, F]; with `transposed`, of [T, F] with the transposed matrices."""
    _, D, F = weights.shape
    tall, wide = _tile(weights)
    (K, side), (N, width) = ((F, wide), (D, tall)) if transposed else ((D, tall), (F, wide))
    plan = _Plan(x, sizes, empty=False)
    last = K // side - 1

    def kernel(at: "_Visit", x_ref, *refs):
        *weight_refs, y_ref, total = refs
        step = pl.program_id(2)

        @pl.when(at.has_rows)
        def _():
            @pl.when(step == 0)
            def _():
                total[...] = jnp.zeros_like(total)

            matrix = _matrix(weights, weight_refs).astype(x.dtype)
            total[...] += _dot(x_ref[...], matrix, (1, 1 if transposed else 0))

            @pl.when(step == last)
            def _():
                kept = y_ref[...].astype(jnp.float32)  # of the groups before; masks are of 32 bits
                y_ref[...] = jnp.where(at.inside(y_ref.shape), total[...], kept).astype(y_ref.dtype)

    def along(at: "_Visit", step):
        return jnp.where(at.has_rows, step, last)  # so that nothing new is fetched

    def of_weights(n, at: "_Visit", step):
        k = along(at, step)
        return (at.group, n, k) if transposed else (at.group, k, n)

    y = plan.call(
        kernel,
        "grouped_matmul_transposed" if transposed else "grouped_matmul",
        grid=(N // width, plan.visits, K // side),
        visit_axis=1,
        inputs=[
            (plan.pad(x), (plan.rows, side), lambda n, at, step: (at.tile, along(at, step))),
            *((one, block, of_weights) for one, block in _stored(weights, tall, wide)),
        ],
        output=((plan.padded, N), (plan.rows, width), lambda n, at, step: (at.tile, n)),
        total=(plan.rows, width),
    )
    return without_rest(y[: len(x)], plan.bounds.ends)


def outer(x: Float[Array, "T D"], dy: Float[Array, "T F"], sizes: Int[Array, " G"]) -> Float[Array, "G D F"]:
    """Return the transposed products."""
    plan, D, F = _Plan(x, sizes, empty=True), x.shape[1], dy.shape[1]
    tall, wide = _side(D), _side(F)

    def kernel(at: "_Visit", x_ref, dy_ref, dw_ref, total):
        @pl.when(at.is_first_of_group)
        def _():
            total[...] = jnp.zeros_like(total)

        @pl.when(at.has_rows)
        def _():
            total[...] += _dot(_only(at, x_ref), _only(at, dy_ref), (0, 0))

        @pl.when(at.is_last_of_group)
        def _():
            dw_ref[...] = total[...].astype(dw_ref.dtype)

    return plan.call(
        kernel,
        "transposed_grouped_matmul",
        grid=(D // tall, F // wide, plan.visits),
        visit_axis=2,
        inputs=[
            (plan.pad(x), (plan.rows, tall), lambda d, f, at: (at.tile, d)),
            (plan.pad(dy), (plan.rows, wide), lambda d, f, at: (at.tile, f)),
        ],
        output=((len(sizes), D, F), (None, tall, wide), lambda d, f, at: (at.group, d, f)),
        total=(tall, wide),
    )


def _only(at: "_Visit", ref) -> Array:
    """Return the rows of a tile that are the group's, and 0 in the others, which may hold anything."""
    rows = ref[...]
    return jnp.where(at.inside(rows.shape), rows.astype(jnp.float32), 0.0).astype(rows.dtype)


class _Visit:
    """The visit of a step of the grid, read from the prefetched scalars."""

    def __init__(self, scalars: Sequence, index, count: int):
        self.scalars, self.index, self.count = Visits(*scalars), index, count

    @property
    def group(self):
        return self.scalars.group[self.index]

    @property
    def tile(self):
        return self.scalars.tile[self.index]

    @property
    def has_rows(self):
        return self.scalars.behind[self.index] > self.scalars.first[self.index]

    @property
    def is_first_of_group(self):
        return (self.index == 0) | (self.scalars.group[jnp.maximum(self.index - 1, 0)] != self.group)

    @property
    def is_last_of_group(self):
        after = self.scalars.group[jnp.minimum(self.index + 1, self.count - 1)]
        return (self.index == self.count - 1) | (after != self.group)

    def inside(self, shape: tuple[int, ...]) -> Bool[Array, "rows columns"]:
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        return (row >= self.scalars.first[self.index]) & (row < self.scalars.behind[self.index])


class _Plan:
    """How rows are padded and cut into tiles, and the visits of the tiles."""

    def __init__(self, x: Float[Array, "T D"], sizes: Int[Array, " G"], *, empty: bool):
        self.x, T = x, len(x)
        # Tiles of about the rows of a group: larger ones would be multiplied mostly for others.
        self.rows = min(max(1 << (T // len(sizes)).bit_length() - 1, LANES), ROWS)
        self.padded = -(-T // self.rows) * self.rows
        tiles = self.padded // self.rows
        self.bounds = bounds(sizes, T)
        self.scalars = visits(self.bounds, rows=self.rows, tiles=tiles, empty=empty)
        self.visits = tiles + len(sizes) - 1

    def pad(self, x: Float[Array, "T D"]) -> Float[Array, "padded D"]:
        return x if len(x) == self.padded else jnp.pad(x, ((0, self.padded - len(x)), (0, 0)))

    def call(self, kernel: Callable, name: str, *, grid, visit_axis: int, inputs: list, output: tuple, total) -> Array:
        """Run a kernel. Inputs are (array, block, index), the output is (shape, block, index).

        The kernel and the indices get a `_Visit` in the place of the grid's index of visits.
        """

        def indexed(index: Callable) -> Callable:
            def of_grid(*arguments):
                at, scalars = list(arguments[: len(grid)]), arguments[len(grid) :]
                at[visit_axis] = _Visit(scalars, at[visit_axis], self.visits)
                return index(*at)

            return of_grid

        def body(*refs):
            scalars, others = refs[: len(self.scalars)], refs[len(self.scalars) :]
            kernel(_Visit(scalars, pl.program_id(visit_axis), self.visits), *others)

        shape, block, index = output
        kind = jax.typeof(self.x).manual_axis_type  # of all, see varying.alike
        return pl.pallas_call(
            body,
            name=name,
            out_shape=jax.ShapeDtypeStruct(shape, self.x.dtype, manual_axis_type=kind),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(self.scalars),
                grid=grid,
                in_specs=[pl.BlockSpec(extent, indexed(where)) for _, extent, where in inputs],
                out_specs=pl.BlockSpec(block, indexed(index)),
                scratch_shapes=[pltpu.VMEM(total, jnp.float32)],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=tuple(
                    pltpu.PARALLEL if axis < visit_axis else pltpu.ARBITRARY for axis in range(len(grid))
                )
            ),
        )(*self.scalars, *(x for x, _, _ in inputs))


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _side(size: int, block: int = 1) -> int:
    """Return the side of a tile: the largest divisor of a size, up to SIDE, that the hardware takes.

    Of codes in blocks of several rows a tile has whole blocks, and as many that their scales fill sublanes, or all.
    """
    multiple = LANES if block == 1 else math.lcm(LANES, SUBLANES * block)
    fitting = [n for n in range(multiple, max(SIDE, multiple) + 1, multiple) if size % n == 0]
    return max(fitting, default=size)


def _tile(weights: Weights) -> tuple[int, int]:
    """Return rows and columns of a tile of a matrix."""
    rows = weights.blocks.per_axis(3)[1] if isinstance(weights, QuantizedArray) else 1
    return _side(weights.shape[1], rows), _side(weights.shape[2])


def _stored(weights: Weights, tall: int, wide: int) -> list[tuple[Array, tuple]]:
    """Return the arrays of weights, each with its block."""
    if not isinstance(weights, QuantizedArray):
        return [(weights, (None, tall, wide))]
    _, a, b = weights.blocks.per_axis(3)
    per_block = [one for one in (weights.scales, weights.exponents) if one is not None]
    repeated = [jnp.repeat(one, b, axis=2)[..., : weights.shape[2]] for one in per_block]
    return [(weights.codes, (None, tall, wide)), *((one, (None, tall // a, wide)) for one in repeated)]


@dataclass(frozen=True)
class _Rows:
    """The layout of a tile of codes: a row of numbers of blocks is that of `a` rows of codes."""

    a: int

    def spread(self, per_block: Float[Array, "n columns"]) -> Float[Array, "rows columns"]:
        n, columns = per_block.shape
        return jnp.broadcast_to(per_block[:, None], (n, self.a, columns)).reshape(n * self.a, columns)


def _matrix(weights: Weights, refs: Sequence) -> Array:
    """Return a tile of weights from its blocks in memory."""
    if not isinstance(weights, QuantizedArray):
        return refs[0][...]
    codes, scales, *exponents = (ref[...] for ref in refs)
    layout = _Rows(weights.blocks.per_axis(3)[1])
    return decode(Coded(codes, scales, exponents[0] if exponents else None), weights.format, layout)
