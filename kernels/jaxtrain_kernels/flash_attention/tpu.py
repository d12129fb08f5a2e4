"""Attention in Pallas for TPU: one forward kernel, and two for the backward (Dao, 2023, arXiv:2307.08691).

Scores are transposed, with keys along the sublanes. Maxima and sums over keys are then elementwise, and the numbers of
a query (running maximum, sum, log-sum-exp, delta) are a row along the lanes. The forward kernel keeps its sums on chip
while it goes along the blocks of keys, and so does the first backward kernel for dq. The second backward kernel, for dk
and dv, goes along the queries of all heads of a group, so no sum over heads remains.

A block is skipped if no query can see it, by position or by the bounds of its segment ids. A block hidden by position
is not fetched either. Products of float32 are exact to float32. Left out: skipping the mask of blocks that are seen
whole.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.flash_attention.problem import LOWEST, MASKED, Inputs, Options, offset_of, seen_by_position

DTYPES = (jnp.float32, jnp.bfloat16)
QUERIES, KEYS = 512, 512  # of a block
LANES = 128


def refuses(x: Inputs, options: Options) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    reasons = []
    if options.slopes is not None:
        reasons.append("it has no slopes")
    if x.q.dtype not in DTYPES:
        reasons.append(f"q, k and v are {x.q.dtype}, not float32 or bfloat16")
    for name, size in (("key", x.q.shape[-1]), ("value", x.v.shape[-1])):
        if size not in (64, 128, 256):
            reasons.append(f"the {name} dim is {size}, not 64, 128 or 256")
    for name, asked in (("queries", options.blocks.queries), ("keys", options.blocks.keys)):
        if asked is not None and asked % LANES:
            reasons.append(f"blocks of {asked} {name} are no multiple of {LANES}")
    return reasons


def forward(x: Inputs, options: Options) -> tuple[Float[Array, "B L H V"], Float[Array, "B H L"]]:
    """Return the output and the log-sum-exp, -inf where a query sees nothing."""
    plan = _Plan(x, options)
    V = x.v.shape[-1]
    o, lse = plan.call(
        _forward_kernel,
        "flash_attention_forward",
        grid=(plan.B, plan.H, plan.query_blocks, plan.key_blocks),
        inputs=plan.inputs(plan.over_keys),
        outputs=[
            plan.query_output(plan.over_keys, (plan.B, plan.H, plan.Lp, V), x.v.dtype),
            plan.row_output(plan.over_keys, jnp.float32),
        ],
        scratch=[(1, plan.bq), (1, plan.bq), (V, plan.bq)],
    )
    return o[:, :, : plan.L].swapaxes(1, 2), lse[:, :, 0, : plan.L]


def backward(
    x: Inputs, lse: Float[Array, "B H L"], delta: Float[Array, "B H L"], do: Float[Array, "B L H V"], options: Options
) -> tuple[Array, Array, Array, Array | None]:
    """Return dq, dk, dv and dbias. `lse` is +inf where a query sees nothing; `delta` is sum(do * o) - dlse."""
    plan = _Plan(x, options)
    K, V, J = x.q.shape[-1], x.v.shape[-1], x.k.shape[2]
    grads = (plan.pad(do.swapaxes(1, 2), 2, plan.Lp), plan.row(lse, jnp.inf), plan.row(delta, 0.0))
    dbias_outputs = [] if x.bias is None else [plan.tile_output(plan.over_keys)]
    dq, *dbias = plan.call(
        _dq_kernel,
        "flash_attention_dq",
        grid=(plan.B, plan.H, plan.query_blocks, plan.key_blocks),
        inputs=plan.inputs(plan.over_keys) | plan.gradients(plan.over_keys, *grads),
        outputs=[plan.query_output(plan.over_keys, (plan.B, plan.H, plan.Lp, K), x.q.dtype), *dbias_outputs],
        scratch=[(plan.bq, K)],
    )
    dk, dv = plan.call(
        _dkv_kernel,
        "flash_attention_dkv",
        grid=(plan.B, J, plan.key_blocks, plan.G * plan.query_blocks),
        inputs=plan.inputs(plan.over_queries) | plan.gradients(plan.over_queries, *grads),
        outputs=[plan.key_output(plan.over_queries, (plan.B, J, plan.Sp, size), x.k.dtype) for size in (K, V)],
        scratch=[(plan.bk, K), (plan.bk, V)],
    )
    dq = dq[:, :, : plan.L].swapaxes(1, 2)
    dk, dv = (y[:, :, : plan.S].swapaxes(1, 2) for y in (dk, dv))
    return dq, dk, dv, None if x.bias is None else _fold_bias(dbias[0], x.bias, plan)


def _fold_bias(dbias: Float[Array, "B H Sp Lp"], bias: Array, plan: "_Plan") -> Array:
    """Sum the gradient of every score over the axes along which the bias is broadcast."""
    dbias = dbias[:, :, : plan.S, : plan.L].swapaxes(2, 3)
    axes = tuple(axis for axis in range(4) if bias.shape[axis] < dbias.shape[axis])
    return jnp.sum(dbias, axis=axes, keepdims=True).astype(bias.dtype)


class Step(NamedTuple):
    """Which row, query head, block of queries and block of keys a step of the grid computes."""

    row: Int[Array, ""]
    head: Int[Array, ""]
    queries: Int[Array, ""]
    keys: Int[Array, ""]


class _Plan:
    """How a problem is padded and cut into blocks, and which blocks each step of a grid reads and writes."""

    def __init__(self, x: Inputs, options: Options):
        self.x, self.options = x, options
        self.B, self.L, self.H, _ = x.q.shape
        self.S = x.k.shape[1]
        self.G = self.H // x.k.shape[2]
        self.bq = min(options.blocks.queries or QUERIES, _up(self.L, LANES))
        self.bk = min(options.blocks.keys or KEYS, _up(self.S, LANES))
        self.Lp, self.Sp = _up(self.L, self.bq), _up(self.S, self.bk)
        self.query_blocks, self.key_blocks = self.Lp // self.bq, self.Sp // self.bk
        self.precision = jax.lax.Precision.HIGHEST if x.q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
        self.scalars = [jnp.asarray(offset_of(x, options), jnp.int32)[None]]
        if x.segments is not None:  # lowest and highest segment of each block, flat
            bounds = zip(x.segments, (self.bq, self.bk), strict=True)
            self.scalars += [y for ids, size in bounds for y in _bounds(ids, size)]

    def over_keys(self, b, h, i, j) -> Step:
        """Return the step of a grid whose last axis is the blocks of keys."""
        return Step(b, h, i, j)

    def over_queries(self, b, j, s, t) -> Step:
        """Return the step of a grid whose last axis is the blocks of queries of all heads of a group."""
        n = jnp.int32(self.query_blocks)
        return Step(b, j * self.G + jax.lax.div(t, n), jax.lax.rem(t, n), s)

    def pad(self, y: Array, axis: int, to: int, value: float = 0) -> Array:
        widths = [(0, to - y.shape[axis] if i == axis else 0) for i in range(y.ndim)]
        return y if to == y.shape[axis] else jnp.pad(y, widths, constant_values=value)

    def row(self, y: Float[Array, "B H L"], value: float) -> Float[Array, "B H 1 Lp"]:
        return self.pad(y.astype(jnp.float32), 2, self.Lp, value)[:, :, None]

    # Block specifications. `step_of` turns the indices of the grid into a Step. A block hidden by position is replaced
    # by the nearest one that is not, so that it is not fetched.

    def _spec(self, shape, step_of: Callable, index: Callable) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *at: index(self._fetched(step_of, at[:4], at[4])))

    def _fetched(self, step_of: Callable, at, offset) -> Step:
        step = step_of(*at)
        offset, limit = offset[0], self.options
        if step_of == self.over_keys:
            first = offset + step.queries * self.bq
            low, high = self._limits(first, self.bq, limit.window, limit.causal)
            return step._replace(keys=_clamp(step.keys, low, high, self.bk, self.key_blocks))
        # The queries that see a key are as far ahead of it as the keys that a query sees are behind the query.
        first = step.keys * self.bk - offset
        low = first if limit.causal else None if limit.window is None else first - limit.window + 1
        high = None if limit.window is None else first + self.bk + limit.window - 2
        return step._replace(queries=_clamp(step.queries, low, high, self.bq, self.query_blocks))

    def _limits(self, first, size, window, causal):
        low = None if window is None else first - window + 1
        last = first + size - 1
        return low, last if causal else None if window is None else last + window - 1

    def inputs(self, step_of: Callable) -> dict[str, tuple[Array, pl.BlockSpec]]:
        """Return the arrays of the problem, laid out for the kernels, each with its blocks."""
        x, G = self.x, self.G
        scaled = x.q * jnp.asarray(self.options.scale, x.q.dtype)
        of_keys = functools.partial(
            self._spec, step_of=step_of, index=lambda s: (s.row, jax.lax.div(s.head, jnp.int32(G)), s.keys, 0)
        )
        found = {
            "q": (self.pad(scaled.swapaxes(1, 2), 2, self.Lp), self._query_spec(step_of, x.q.shape[-1])),
            "k": (self.pad(x.k.swapaxes(1, 2), 2, self.Sp), of_keys((None, None, self.bk, x.k.shape[-1]))),
            "v": (self.pad(x.v.swapaxes(1, 2), 2, self.Sp), of_keys((None, None, self.bk, x.v.shape[-1]))),
        }
        if x.bias is not None:
            found["bias"] = self._bias(x.bias, step_of)
        if x.segments is not None:
            queries, keys = (y.astype(jnp.int32) for y in x.segments)
            row = self._spec((None, 1, self.bq), step_of, lambda s: (s.row, 0, s.queries))
            column = self._spec((None, self.bk, 1), step_of, lambda s: (s.row, s.keys, 0))
            found["segments"] = (self.pad(queries, 1, self.Lp)[:, None], row)
            found["key_segments"] = (self.pad(keys, 1, self.Sp)[:, :, None], column)
        return found

    def _bias(self, bias: Array, step_of: Callable) -> tuple[Array, pl.BlockSpec]:
        b, h, _, _ = bias.shape
        whole = jnp.broadcast_to(bias, (b, h, self.L, self.S)).swapaxes(2, 3)
        whole = self.pad(self.pad(whole, 2, self.Sp), 3, self.Lp)
        index = lambda s: (s.row if b > 1 else 0, s.head if h > 1 else 0, s.keys, s.queries)  # noqa: E731
        return whole, self._spec((None, None, self.bk, self.bq), step_of, index)

    def gradients(self, step_of: Callable, do, lse, delta) -> dict[str, tuple[Array, pl.BlockSpec]]:
        row = self._row_spec(step_of)
        return {"do": (do, self._query_spec(step_of, do.shape[-1])), "lse": (lse, row), "delta": (delta, row)}

    def _query_spec(self, step_of: Callable, size: int) -> pl.BlockSpec:
        return self._spec((None, None, self.bq, size), step_of, lambda s: (s.row, s.head, s.queries, 0))

    def _row_spec(self, step_of: Callable) -> pl.BlockSpec:
        return self._spec((None, None, 1, self.bq), step_of, lambda s: (s.row, s.head, 0, s.queries))

    def query_output(self, step_of: Callable, shape, dtype):
        return self._output(shape, dtype), self._query_spec(step_of, shape[-1])

    def row_output(self, step_of: Callable, dtype):
        return self._output((self.B, self.H, 1, self.Lp), dtype), self._row_spec(step_of)

    def key_output(self, step_of: Callable, shape, dtype):
        index = lambda b, j, s, t, *_: (b, j, s, 0)  # noqa: E731
        return self._output(shape, dtype), pl.BlockSpec((None, None, self.bk, shape[-1]), index)

    def tile_output(self, step_of: Callable):
        """Return the shape and the blocks of the gradient of every score; hidden blocks are written, too."""
        index = lambda b, h, i, j, *_: (b, h, j, i)  # noqa: E731
        shape = self._output((self.B, self.H, self.Sp, self.Lp), jnp.float32)
        return shape, pl.BlockSpec((None, None, self.bk, self.bq), index)

    def _output(self, shape, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(self.x.q).manual_axis_type)

    def call(self, kernel: Callable, name: str, *, grid, inputs: dict, outputs: list, scratch: list) -> list[Array]:
        """Run a kernel. It gets a `Tile`, with this plan and the inputs by name; scratch buffers are float32."""
        step_of = self.over_queries if kernel is _dkv_kernel else self.over_keys
        scalars = len(self.scalars)

        def body(*refs):
            named = dict(zip(inputs, refs[scalars:], strict=False))
            kernel(Tile(self, step_of, refs[:scalars], named), *refs[scalars + len(inputs) :])

        shapes, specs = zip(*outputs, strict=True)
        return pl.pallas_call(
            body,
            name=name,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=scalars,
                grid=grid,
                in_specs=[spec for _, spec in inputs.values()],
                out_specs=list(specs),
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 3 + ("arbitrary",)),
        )(*self.scalars, *(y for y, _ in inputs.values()))


class Tile:
    """What a step of a kernel computes: the scores of one block of queries with one block of keys."""

    def __init__(self, plan: _Plan, step_of: Callable, scalars, refs: dict):
        self.plan, self.refs, self.scalars = plan, refs, scalars
        self.step = step_of(*(pl.program_id(axis) for axis in range(4)))
        self.offset = scalars[0][0]
        last = pl.program_id(3) == pl.num_programs(3) - 1
        self.first, self.last = pl.program_id(3) == 0, last

    def __getitem__(self, name: str) -> Array:
        return self.refs[name][...]

    def dot(self, a: Array, b: Array, contract: tuple[int, int]) -> Array:
        dimensions = (((contract[0],), (contract[1],)), ((), ()))
        return jax.lax.dot_general(a, b, dimensions, precision=self.plan.precision, preferred_element_type=jnp.float32)

    def visible(self):
        """Return whether some query may see some key, by position and by the bounds of their segments."""
        plan, options = self.plan, self.plan.options
        first = self.offset + self.step.queries * plan.bq
        low, high = plan._limits(first, plan.bq, options.window, options.causal)
        key = self.step.keys * plan.bk
        seen = key < plan.S
        if high is not None:
            seen &= key <= high
        if low is not None:
            seen &= key + plan.bk > low
        if len(self.scalars) > 1:
            q = self.step.row * plan.query_blocks + self.step.queries
            k = self.step.row * plan.key_blocks + self.step.keys
            q_low, q_high, k_low, k_high = (ref[at] for ref, at in zip(self.scalars[1:], (q, q, k, k), strict=True))
            seen &= (q_low <= k_high) & (k_low <= q_high)
        return seen

    def scores(self) -> tuple[Float[Array, "bk bq"], Float[Array, "bk bq"] | None]:
        """Return the scores, MASKED where out of sight, and the derivative of the soft cap."""
        s, slope, cap = self.dot(self["k"], self["q"], (1, 1)), None, self.plan.options.softcap
        if cap is not None:
            t = jnp.tanh(s / cap)
            s, slope = cap * t, 1 - t * t
        if "bias" in self.refs:
            s = s + self["bias"].astype(jnp.float32)
        seen = self._seen(s.shape)
        return s if seen is None else jnp.where(seen, s, MASKED), slope

    def _seen(self, shape: tuple[int, ...]):
        plan = self.plan
        key = self.step.keys * plan.bk + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        query = self.offset + self.step.queries * plan.bq + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        by_position = seen_by_position(plan.options, query - key)
        conditions = [] if by_position is None else [by_position]
        if plan.Sp > plan.S:
            conditions.append(key < plan.S)
        if "segments" in self.refs:
            conditions.append(self["key_segments"] == self["segments"])
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    def gradient_of_scores(self):
        """Return the weights p and the gradients of the scores, after and before the soft cap."""
        s, slope = self.scores()
        p = jnp.exp(s - self["lse"])
        ds = p * (self.dot(self["v"], self["do"], (1, 1)) - self["delta"])
        return p, ds, ds if slope is None else ds * slope


def _forward_kernel(tile: Tile, o, lse, m, total, acc):
    @pl.when(tile.first)
    def _():
        m[...] = jnp.full_like(m, LOWEST)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @pl.when(tile.visible())
    def _():
        s, _ = tile.scores()
        top = jnp.maximum(m[...], jnp.max(s, axis=0, keepdims=True))
        e, keep = jnp.exp(s - top), jnp.exp(m[...] - top)
        v = tile["v"]
        m[...] = top
        total[...] = total[...] * keep + jnp.sum(e, axis=0, keepdims=True)
        acc[...] = acc[...] * keep + tile.dot(v, e.astype(v.dtype), (0, 0))

    @pl.when(tile.last)
    def _():
        empty = total[...] == 0
        some = jnp.where(empty, 1.0, total[...])
        o[...] = (acc[...] / some).T.astype(o.dtype)
        lse[...] = jnp.where(empty, -jnp.inf, m[...] + jnp.log(some))


def _dq_kernel(tile: Tile, dq, *rest):
    *dbias, acc = rest

    @pl.when(tile.first)
    def _():
        acc[...] = jnp.zeros_like(acc)

    visible = tile.visible()

    @pl.when(visible)
    def _():
        _, ds_after, ds = tile.gradient_of_scores()
        k = tile["k"]
        acc[...] += tile.dot(ds.astype(k.dtype), k, (0, 0))
        for ref in dbias:
            ref[...] = ds_after

    for ref in dbias:

        @pl.when(jnp.logical_not(visible))
        def _(ref=ref):
            ref[...] = jnp.zeros_like(ref)

    @pl.when(tile.last)
    def _():
        dq[...] = (acc[...] * tile.plan.options.scale).astype(dq.dtype)


def _dkv_kernel(tile: Tile, dk, dv, dk_acc, dv_acc):
    @pl.when(tile.first)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    @pl.when(tile.visible())
    def _():
        p, _, ds = tile.gradient_of_scores()
        q, do = tile["q"], tile["do"]
        dk_acc[...] += tile.dot(ds.astype(q.dtype), q, (1, 0))
        dv_acc[...] += tile.dot(p.astype(do.dtype), do, (1, 0))

    @pl.when(tile.last)
    def _():
        dk[...] = dk_acc[...].astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _clamp(index, low, high, size: int, blocks: int):
    """Return the block nearest to `index` that has positions from `low` to `high`."""
    if high is not None:
        index = jnp.minimum(index, jax.lax.div(jnp.clip(high, 0, blocks * size - 1), jnp.int32(size)))
    if low is not None:
        index = jnp.maximum(index, jax.lax.div(jnp.clip(low, 0, blocks * size - 1), jnp.int32(size)))
    return index


def _bounds(ids: Int[Array, "B L"], size: int) -> list[Int[Array, " rows_and_blocks"]]:
    """Return the lowest and the highest id of each block, without padding."""
    blocks = [jnp.pad(ids.astype(jnp.int32), ((0, 0), (0, -ids.shape[1] % size)), mode="edge").reshape(-1, size)]
    return [f(y, axis=1) for y in blocks for f in (jnp.min, jnp.max)]
