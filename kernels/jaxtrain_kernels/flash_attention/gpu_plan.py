"""What the kernels of attention for GPU compute: which blocks see which, the operands of each, the scores of a tile."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxtrain_kernels.flash_attention.gpu_tiles import BLOCK, ROWS, WARPGROUPS, load, spread
from jaxtrain_kernels.flash_attention.problem import MASKED, Inputs, Options, seen_by_position


class Position(NamedTuple):
    """The row of the batch, the head, the block and the warpgroup of a thread; `rows` are those of the warpgroup."""

    row: Array
    head: Array
    block: Array
    warpgroup: Array
    offset: Array | int

    @property
    def first(self):
        return self.block * BLOCK + self.warpgroup * ROWS

    @property
    def rows(self):
        return pl.ds(self.first, ROWS)

    def fetch(self, source, smem, barrier) -> None:
        plgpu.copy_gmem_to_smem(source, smem.at[self.warpgroup], barrier.at[self.warpgroup])
        plgpu.barrier_wait(barrier.at[self.warpgroup])

    def ids(self, refs: dict, name: str):
        """Return the segment ids of the warpgroup's rows, or None."""
        return load(refs[name].at[self.row, self.rows], 1) if name in refs else None


class Plan:
    """A problem padded to whole blocks, and which blocks of queries see which blocks of keys."""

    def __init__(self, x: Inputs, options: Options):
        self.x, self.options = x, options
        self.B, self.L, self.H, _ = x.q.shape
        self.S, self.J = x.k.shape[1:3]
        self.G = self.H // self.J
        self.Lp, self.Sp = (-(-n // BLOCK) * BLOCK for n in (self.L, self.S))
        # Of a tile of scores in the backward, twice as many in the forward: as many as fit registers and shared memory.
        self.columns = 64 if max(x.q.shape[-1], x.v.shape[-1]) <= 128 else 32

    def operands(self) -> dict[str, Array]:
        x = self.x
        found = {
            "q": pad(x.q * jnp.asarray(self.options.scale, x.q.dtype), 1, self.Lp),
            "k": pad(x.k, 1, self.Sp),
            "v": pad(x.v, 1, self.Sp),
        }
        if x.segments is not None:
            of_queries, of_keys = x.segments
            found["segment_ids"] = pad(of_queries.astype(jnp.int32), 1, self.Lp)
            found["key_segment_ids"] = pad(of_keys.astype(jnp.int32), 1, self.Sp)
        if x.bias is not None:
            whole = jnp.broadcast_to(x.bias, (*x.bias.shape[:2], self.L, self.S))
            found["bias"] = pad(pad(whole, 2, self.Lp), 3, self.Sp)
        if x.offset is not None:
            found["offset"] = x.offset.astype(jnp.int32)[None]
        return found

    def position(self, refs: dict) -> Position:
        offset = refs["offset"][0] if self.options.offset is None else self.options.offset
        row, head, block, warpgroup = (jax.lax.axis_index(name) for name in ("row", "head", "block", "warpgroup"))
        return Position(row, head, block, warpgroup, offset)

    def visible(self, position, size: int, block: int, blocks: int):
        """Return the first block of keys that queries from `position` on may see, and how many, at least one."""
        window, low, high = self.options.window, 0, blocks * block - 1
        if window is not None:
            low = position - window + 1
            high = high if self.options.causal else position + size + window - 2
        if self.options.causal:
            high = position + size - 1
        return _blocks(low, high, block, blocks)

    def visible_from_keys(self, position, size: int):
        """Return the first block of queries that may see keys from `position` on, and how many, at least one.

        Positions are counted from the first query.
        """
        window, low, high = self.options.window, 0, self.Lp - 1
        if window is not None:
            low = low if self.options.causal else position - window + 1
            high = position + BLOCK + window - 2
        if self.options.causal:
            low = position
        return _blocks(low, high, size, self.Lp // size)

    def bias_at(self, refs: dict, row, head, query, key, shape: tuple[int, int], *, turned: bool = False):
        """Return the bias of a tile of scores, or None; with `turned`, for keys along the rows."""
        if "bias" not in refs:
            return None
        row, head = (0 if size == 1 else at for size, at in zip(refs["bias"].shape, (row, head), strict=False))
        first, second = (key, query) if turned else (query, key)
        tile = refs["bias"].at[row, head, pl.ds(first, shape[0]), pl.ds(second, shape[1])]
        return plgpu.load(tile, layout=plgpu.Layout.WGMMA, optimized=False).astype(jnp.float32)

    def _transforms(self) -> tuple:
        """Return the layout in which tensor cores read a matrix: products sum over whole widths of a tile."""
        # mypy takes an unimplemented method of their base class for an abstract one.
        tiling = plgpu.TilingTransform((8, self.columns))  # type: ignore[abstract]
        return tiling, plgpu.SwizzleTransform(2 * self.columns)  # type: ignore[abstract]

    def block(self, shape, index_map: Callable) -> plgpu.BlockSpec:
        return plgpu.BlockSpec(shape, index_map, transforms=self._transforms())

    def tiles(self, like: Array):
        """Return shared memory for the rows of every warpgroup."""
        return plgpu.SMEM((WARPGROUPS, ROWS, like.shape[-1]), like.dtype, transforms=self._transforms())

    def keys_of(self, refs: dict, at: Position, begin, size: int):
        """Return the blocks of keys and values that a pipeline goes along, and the arrays that they are blocks of."""
        head = jax.lax.div(at.head, jnp.int32(self.G))
        specs = [self.block((size, refs[name].shape[-1]), lambda i: (begin + i, 0)) for name in ("k", "v")]
        operands = [refs[name].at[at.row, :, head] for name in ("k", "v")]
        if "key_segment_ids" in refs:
            specs.append(plgpu.BlockSpec((size,), lambda i: (begin + i,)))
            operands.append(refs["key_segment_ids"].at[at.row])
        return specs, operands

    def queries_of(self, refs: dict, at: Position, begin, count, size: int):
        """Return the same for queries, of all heads of a group."""

        def block_and_head(i):
            return begin + jax.lax.rem(i, count), at.head * self.G + jax.lax.div(i, count)

        specs = [
            self.block((size, None, refs[name].shape[-1]), lambda i: (*block_and_head(i), 0)) for name in ("q", "do")
        ]
        specs += [plgpu.BlockSpec((None, size), lambda i: block_and_head(i)[::-1]) for _ in ("lse", "delta")]
        operands = [refs[name].at[at.row] for name in ("q", "do", "lse", "delta")]
        if "segment_ids" in refs:
            specs.append(plgpu.BlockSpec((size,), lambda i: block_and_head(i)[:1]))
            operands.append(refs["segment_ids"].at[at.row])
        return specs, operands

    def scores(self, s, axis: int, query, key, bias=None, ids=None, other_ids=None):
        """Return the scores with their bias, MASKED where out of sight, and the derivative of the soft cap.

        Queries are along `axis`; `query` and `key` are the first positions; `ids` are the segments along the rows.
        """
        slope, cap = None, self.options.softcap
        if cap is not None:
            t = jnp.tanh(s * (1 / cap))
            s, slope = cap * t, 1 - t * t
        s = s if bias is None else s + bias
        of_queries, of_keys = (
            plgpu.broadcasted_iota(jnp.int32, s.shape, dimension, layout=plgpu.Layout.WGMMA)
            for dimension in (axis, 1 - axis)
        )
        by_position = seen_by_position(self.options, (query - key) + of_queries - of_keys)
        conditions = [] if by_position is None else [by_position]
        if self.Sp > self.S:
            conditions.append(of_keys < self.S - key)
        if ids is not None:
            conditions.append(spread(ids, s.shape, 0) == spread(other_ids, s.shape, 1))
        return (jnp.where(functools.reduce(jnp.logical_and, conditions), s, MASKED) if conditions else s), slope


def _blocks(low, high, size: int, blocks: int):
    """Return the first block with positions from `low` to `high`, and how many there are, at least one."""
    last = blocks * size - 1
    first, final = (jax.lax.div(jnp.clip(at, 0, last), size) for at in (jnp.int32(low), jnp.int32(high)))
    return first, jnp.maximum(final - first, 0) + 1


def pad(y: Array, axis: int, to: int, value: float = 0) -> Array:
    widths = [(0, to - y.shape[axis] if i == axis else 0) for i in range(y.ndim)]
    return y if to == y.shape[axis] else jnp.pad(y, widths, constant_values=value)
