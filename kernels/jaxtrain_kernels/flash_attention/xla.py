"""Attention in blocks, in plain XLA, for every device.

Online softmax (Milakov and Gimelshein, 2018, arXiv:1805.02867) over blocks of keys, Dao et al. (2022),
arXiv:2205.14135. The backward recomputes the scores of a block from the log-sum-exp, so memory grows with the length,
not with its square. Blocks that the mask hides by position alone are not computed.

A short sequence is a few blocks of queries. Each is written out (unrolled), with only the keys it can see: one matrix
product each if the keys are few. A long sequence is a loop. On CPU, scores larger than the cache cost more than the
products around them, so there a few rows of the batch are computed at a time, in smaller blocks.

Inside, the G query heads of a key head are rows of one product: M = G x (queries of a block).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.flash_attention.problem import (
    LOWEST,
    MASKED,
    Blocks,
    Inputs,
    Options,
    accumulator,
    offset_of,
    seen_by_position,
)


class Sizes(NamedTuple):
    """The sizes of blocks, as in `Blocks`.

    With `rows` None as many rows of the batch are taken as have SCORES_AT_ONCE bytes of scores. With `keys` None a
    block that is written out takes all keys at once.
    """

    rows: int | None
    queries: int
    written_out: int
    keys: int | None = None

    def replaced_by(self, asked: Blocks) -> "Sizes":
        """Return the sizes that are asked for, and these for the others."""
        return Sizes(
            rows=asked.rows or self.rows,
            queries=asked.queries or self.queries,
            written_out=asked.written_out or self.written_out,
            keys=asked.keys or self.keys,
        )


CPU = Sizes(rows=None, queries=64, written_out=16)
ACCELERATOR = Sizes(rows=1 << 30, queries=128, written_out=4)  # more queries: gigabytes of scores at 64 heads
KEYS_OF_A_LOOP = 1024
SCORES_AT_ONCE = 1 << 20  # half of it and twice as much are as fast; fewer do not keep the cores busy (docs/log.md)


def forward(x: Inputs, options: Options) -> tuple[Float[Array, "B L H V"], Float[Array, "B H L"]]:
    """Return the output and the log-sum-exp, -inf where a query sees nothing."""
    return _on_platform(_forward, options, x)


def backward(
    x: Inputs, lse: Float[Array, "B H L"], delta: Float[Array, "B H L"], do: Float[Array, "B L H V"], options: Options
) -> tuple[Array, Array, Array, Array | None]:
    """Return dq, dk, dv and dbias. `lse` is +inf where a query sees nothing; `delta` is sum(do * o) - dlse."""
    return _on_platform(_backward, options, x, lse, delta, do)


def _on_platform(function: Callable, options: Options, *arguments):
    def run(default: Sizes, *arguments):
        blocks = default.replaced_by(options.blocks)
        rows = rows_at_once(blocks, arguments[0].q, arguments[0].k) if blocks.rows is None else blocks.rows
        return _in_rows(functools.partial(function, options, blocks), rows, *arguments)

    if None not in (options.blocks.rows, options.blocks.queries):
        return run(CPU, *arguments)
    on_cpu, elsewhere = (functools.partial(run, blocks) for blocks in (CPU, ACCELERATOR))
    return jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=elsewhere)


def rows_at_once(blocks: Sizes, q: jax.Array | jax.ShapeDtypeStruct, k: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Return the most rows that divide the batch and have SCORES_AT_ONCE bytes of scores in a block, or 1."""
    (B, L, H, _), S = q.shape, k.shape[1]
    of_a_row = H * min(blocks.queries, L) * S * accumulator(q.dtype).itemsize
    return max((rows for rows in range(1, B + 1) if B % rows == 0 and rows * of_a_row <= SCORES_AT_ONCE), default=1)


def _in_rows(function: Callable, rows: int, x: Inputs, *others):
    """Compute so many rows of the batch at a time; all at once with a bias, whose gradient is summed over them."""
    B = x.q.shape[0]
    if rows >= B or B % rows or x.bias is not None:
        return function(x, *others)

    def some(chunk):
        of_rows, *others = chunk
        return function(of_rows._replace(offset=x.offset), *others)

    chunks = jax.tree.map(lambda y: y.reshape(B // rows, rows, *y.shape[1:]), (x._replace(offset=None), *others))
    return jax.tree.map(lambda y: y.reshape(B, *y.shape[2:]), jax.lax.map(some, chunks))


def _forward(options: Options, blocks: Sizes, x: Inputs):
    tiles = _Tiles(options, blocks, x)

    def of_queries(_, start, size):
        q = tiles.queries(tiles.q, start, size)

        def of_keys(carry, first, count):
            m, total, acc = carry
            s, _ = tiles.scores(q, start, size, first, count)
            new_m = jnp.maximum(m, jnp.max(s, axis=-1))
            e, keep = jnp.exp(s - new_m[..., None]), jnp.exp(m - new_m)
            values = tiles.keys(tiles.v, first, count)
            product = jnp.einsum("BJMS,BJSV->BJMV", e.astype(values.dtype), values, preferred_element_type=acc.dtype)
            return new_m, total * keep + jnp.sum(e, axis=-1), acc * keep[..., None] + product

        none = tiles.full(q.shape[:-1])
        carry = (none + LOWEST, none, tiles.full((*q.shape[:-1], tiles.v.shape[-1])))
        m, total, acc = tiles.over_keys(of_keys, carry, start, size)
        some = jnp.where(total == 0, 1.0, total)
        o = (acc / some[..., None]).astype(x.v.dtype)
        return None, (o, jnp.where(total == 0, -jnp.inf, m + jnp.log(some)))

    _, (o, lse) = tiles.over_queries(of_queries, None)
    return tiles.length_first(o), lse.reshape(lse.shape[0], -1, lse.shape[-1])


def _backward(options: Options, blocks: Sizes, x: Inputs, lse, delta, do):
    tiles = _Tiles(options, blocks, x)
    do = tiles.heads_first(do)
    G = x.q.shape[2] // x.k.shape[2]
    lse, delta = (tiles.pad_queries(y.reshape(y.shape[0], -1, G, y.shape[-1]), 3) for y in (lse, delta))

    def of_queries(sums, start, size):
        q, do_block, lse_block, delta_block = (tiles.queries(y, start, size) for y in (tiles.q, do, lse, delta))
        # Products that contract the first axis of the scores are slow on CPU, so the small operand is transposed.
        q_BJKM, do_BJVM = q.swapaxes(2, 3), do_block.swapaxes(2, 3)
        # The barrier runs one block after another: the scores of all blocks together would be the whole matrix.
        sums, q, do_block, q_BJKM, do_BJVM = jax.lax.optimization_barrier((sums, q, do_block, q_BJKM, do_BJVM))

        def of_keys(carry, first, count):
            (dk, dv, dbias), dq = carry
            k, v = tiles.keys(tiles.k, first, count), tiles.keys(tiles.v, first, count)
            s, slope = tiles.scores(q, start, size, first, count)
            p = jnp.exp(s - lse_block[..., None])
            dp = jnp.einsum("BJMV,BJSV->BJMS", do_block, v, preferred_element_type=p.dtype)
            ds = p * (dp - delta_block[..., None])
            dbias = tiles.add_to_bias(dbias, ds, start, size, first, count)
            ds = (ds if slope is None else ds * slope).astype(q.dtype)
            product = functools.partial(jnp.einsum, preferred_element_type=dq.dtype)
            dq = dq + product("BJMS,BJSK->BJMK", ds, k)
            dk = _add(dk, product("BJKM,BJMS->BJKS", q_BJKM, ds), first)
            dv = _add(dv, product("BJVM,BJMS->BJVS", do_BJVM, p.astype(do.dtype)), first)
            return (dk, dv, dbias), dq

        sums, dq = tiles.over_keys(of_keys, (sums, tiles.full(q.shape)), start, size)
        return sums, ((dq * options.scale).astype(x.q.dtype),)

    dk, dv = (tiles.full(y.swapaxes(2, 3).shape) for y in (tiles.k, tiles.v))
    sums = (dk, dv, tiles.no_bias_gradient())
    (dk, dv, dbias), (dq,) = tiles.over_queries(of_queries, sums)
    S = x.k.shape[1]
    dk, dv = (y[..., :S].transpose(0, 3, 1, 2).astype(like.dtype) for y, like in ((dk, x.k), (dv, x.v)))
    if x.bias is not None:
        dbias = dbias.reshape(x.bias.shape[0], -1, *dbias.shape[3:])[tuple(slice(n) for n in x.bias.shape)]
        dbias = dbias.astype(x.bias.dtype)
    return tiles.length_first(dq), dk, dv, dbias


def _add(total: Float[Array, "B J K S"], part: Float[Array, "B J K s"], first) -> Float[Array, "B J K S"]:
    if part.shape == total.shape:
        return total + part
    old = jax.lax.dynamic_slice_in_dim(total, first, part.shape[3], axis=3)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, first, axis=3)


class _Tiles:
    """A problem with heads before lengths, cut into blocks of queries and of keys.

    Blocks that are written out have a static start and size, and only the keys they can see. Blocks of a loop have one
    size, and the lengths are padded to multiples of it.
    """

    def __init__(self, options: Options, blocks: Sizes, x: Inputs):
        self.options, self.x = options, x
        self.dtype = accumulator(x.q.dtype)
        self.L, self.S = x.q.shape[1], x.k.shape[1]
        self.block = min(blocks.queries, self.L)
        self.written_out = -(-self.L // self.block) <= blocks.written_out
        self.offset = offset_of(x, options)
        at_once = self.S if self.written_out and options.offset is not None else KEYS_OF_A_LOOP
        self.key_block = min(blocks.keys or at_once, self.S)
        self.pad_q = 0 if self.written_out else -self.L % self.block
        self.pad_k = -self.S % self.key_block  # for blocks of a loop; those written out never reach it
        scaled = x.q * jnp.asarray(options.scale, x.q.dtype)
        self.q = self.heads_first(scaled)
        self.k, self.v = (self._pad(y.swapaxes(1, 2), 2, self.pad_k) for y in (x.k, x.v))
        if x.bias is not None:
            B, H, *rest = x.bias.shape
            J = x.k.shape[2]
            bias = x.bias.reshape((B, 1, 1, *rest) if H == 1 else (B, J, H // J, *rest))
            bias = bias if bias.shape[3] == 1 else self.pad_queries(bias, 3)
            self.bias = bias if bias.shape[4] == 1 else self._pad(bias, 4, self.pad_k)
        if x.segments is not None:
            of_queries, of_keys = x.segments
            self.segments = self.pad_queries(of_queries, 1)
            self.key_segments = self._pad(of_keys, 1, self.pad_k)

    def full(self, shape: tuple[int, ...]) -> Array:
        """Return zeros that, inside shard_map, vary over the mesh axes that any input varies over."""
        leaves = [y for y in self.x if y is not None]
        zero = functools.reduce(jnp.add, [jax.lax.full_like(y, 0, self.dtype, ()) for y in leaves])
        return jax.lax.full_like(zero, 0, self.dtype, shape)

    def no_bias_gradient(self) -> Array | None:
        return None if self.x.bias is None else self.full(self.bias.shape)

    def heads_first(self, y: Float[Array, "B L H K"]) -> Float[Array, "B J G padded K"]:
        B, L, H, K = y.shape
        J = self.x.k.shape[2]
        return self.pad_queries(y.reshape(B, L, J, H // J, K).transpose(0, 2, 3, 1, 4), 3)

    def length_first(self, y: Float[Array, "B J G L K"]) -> Float[Array, "B L H K"]:
        B, J, G, L, K = y.shape
        return y.transpose(0, 3, 1, 2, 4).reshape(B, L, J * G, K)

    def _pad(self, y: Array, axis: int, by: int) -> Array:
        return y if by == 0 else jnp.pad(y, [(0, by if i == axis else 0) for i in range(y.ndim)])

    def pad_queries(self, y: Array, axis: int) -> Array:
        return self._pad(y, axis, self.pad_q)

    def queries(self, y: Float[Array, "B J G L *K"], start, size: int) -> Float[Array, "B J M *K"]:
        y = _slice(y, start, size, 3)
        return y.reshape(*y.shape[:2], -1, *y.shape[4:])

    def keys(self, y: Float[Array, "B J S K"], first, count: int) -> Float[Array, "B J s K"]:
        return _slice(y, first, count, 2)

    def scores(self, q, start, size: int, first, count: int):
        """Return the scores of a tile, MASKED added to those out of sight, and the derivative of the soft cap."""
        s = jnp.einsum("BJMK,BJSK->BJMS", q, self.keys(self.k, first, count), preferred_element_type=self.dtype)
        slope, cap = None, self.options.softcap
        if cap is not None:
            t = jnp.tanh(s / cap)
            s, slope = cap * t, 1 - t * t
        M = s.shape
        s = s.reshape(*M[:2], -1, size, count)
        if self.options.slopes is not None:
            s = s - self._by_distance(start, size, first, count)
        if self.x.bias is not None:
            s = s + self._bias_tile(self.bias, start, size, first, count).astype(s.dtype)
        seen = self._seen(start, size, first, count)
        s = s if seen is None else s + jnp.where(seen, 0.0, MASKED).astype(s.dtype)
        return s.reshape(M), slope

    def _by_distance(self, start, size: int, first, count: int) -> Float[Array, "1 J G size count"]:
        """Return the slope of each head times the distance between query and key."""
        slopes_JG = jnp.asarray(self.options.slopes, self.dtype).reshape(self.x.k.shape[2], -1)
        distance = jnp.abs(self._distance(start, size, first, count)).astype(self.dtype)
        return (slopes_JG[:, :, None, None] * distance[None, None])[None]

    def _distance(self, start, size: int, first, count: int) -> Int[Array, "size count"]:
        """Return how far each key of a tile is behind each of its queries."""
        return (self.offset + start + jnp.arange(size))[:, None] - (first + jnp.arange(count))[None, :]

    def _bias_tile(self, bias, start, size, first, count):
        bias = bias if bias.shape[3] == 1 else _slice(bias, start, size, 3)
        return bias if bias.shape[4] == 1 else _slice(bias, first, count, 4)

    def add_to_bias(self, dbias, ds, start, size, first, count):
        if dbias is None:
            return None
        ds = ds.reshape(*ds.shape[:2], -1, size, count)
        tile = self._bias_tile(dbias, start, size, first, count)
        summed = [axis for axis in range(5) if tile.shape[axis] < ds.shape[axis]]
        at = (0, 0, 0, 0 if dbias.shape[3] == 1 else start, 0 if dbias.shape[4] == 1 else first)
        return jax.lax.dynamic_update_slice(dbias, tile + jnp.sum(ds, axis=summed, keepdims=True), at)

    def _seen(self, start, size, first, count):
        """Return which keys of the tile are seen, broadcastable to [B, J, G, size, count], or None if all are."""
        key = first + jnp.arange(count)
        by_position = seen_by_position(self.options, self._distance(start, size, first, count))
        conditions = [] if by_position is None else [by_position[None, None, None]]
        if self.pad_k and not isinstance(first, int):
            conditions.append((key < self.S)[None, None, None, None])
        if self.x.segments is not None:
            own = _slice(self.segments, start, size, 1)[:, None, None, :, None]
            conditions.append(own == _slice(self.key_segments, first, count, 1)[:, None, None, None, :])
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    def over_queries(self, body: Callable, carry):
        """Run `body(carry, start, size) -> carry, parts` on every block of queries; join the parts along the length."""
        if self.written_out:
            parts = []
            for start in range(0, self.L, self.block):
                carry, part = body(carry, start, min(self.block, self.L - start))
                parts.append(part)
            parts = [jnp.concatenate([self._split(y) for y in ys], axis=3) for ys in zip(*parts, strict=True)]
            return carry, parts
        starts = jnp.arange(0, self.L, self.block)
        carry, parts = jax.lax.scan(lambda carry, start: body(carry, start, self.block), carry, starts)
        return carry, [self._join(y) for y in parts]

    def _split(self, y: Float[Array, "B J M *K"]) -> Float[Array, "B J G m *K"]:
        return y.reshape(*y.shape[:2], self.q.shape[2], -1, *y.shape[3:])

    def _join(self, y: Float[Array, "N B J M *K"]) -> Float[Array, "B J G L *K"]:
        N, B, J, _, *K = y.shape
        y = y.reshape(N, B, J, self.q.shape[2], self.block, *K)
        y = jnp.moveaxis(y, 0, 3)
        return y.reshape(B, J, self.q.shape[2], N * self.block, *K)[:, :, :, : self.L]

    def over_keys(self, body: Callable, carry, start, size: int):
        """Run `body(carry, first, count) -> carry` over the keys that a block of queries can see."""
        first, end = self._range(start, size)
        if isinstance(first, int) and isinstance(end, int):
            if end <= first:
                return carry
            if end - first <= self.key_block:
                return body(carry, first, end - first)
        elif self.key_block >= self.S:
            return body(carry, 0, self.S)
        one = lambda index, carry: body(carry, index * self.key_block, self.key_block)  # noqa: E731
        return jax.lax.fori_loop(first // self.key_block, -(-end // self.key_block), one, carry)

    def _range(self, start, size: int):
        """Return the range of keys that some query of the block can see: the first one, and the one after the last."""
        at, options = self.offset + start, self.options
        first, end = 0, self.S
        if options.window is not None:
            first = at - options.window + 1
            end = end if options.causal else at + size + options.window - 1
        if options.causal:
            end = at + size
        return _clip(first, self.S), _clip(end, self.S)


def _clip(x, most: int):
    return min(max(x, 0), most) if isinstance(x, int) else jnp.clip(x, 0, most)


def _slice(y: Array, start, size: int, axis: int) -> Array:
    if isinstance(start, int):
        return jax.lax.slice_in_dim(y, start, start + size, axis=axis)
    return jax.lax.dynamic_slice_in_dim(y, start, size, axis=axis)
