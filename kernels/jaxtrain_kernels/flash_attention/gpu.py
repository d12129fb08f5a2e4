"""Attention in Mosaic GPU for Hopper: products on the tensor cores (wgmma), copies by a warpgroup of their own.

Shah et al. (2024), arXiv:2407.08608, without its overlap of softmax and products between warpgroups. A program has two
warpgroups that compute, each with 64 rows, and one that copies blocks into shared memory ahead of them. The kernels of
the forward and of dq hold queries and go along the blocks of keys. The kernel of dk and dv holds keys, has transposed
scores, and goes along the queries of all heads of a group. Blocks that are out of sight by position are neither fetched
nor computed. With a head dim of 256 blocks are half as long; dk and dv then have a kernel each, because their sums do
not fit the registers together.

Threads load a bias themselves. With a bias the kernel of dq also writes the bias's gradient, and goes along all keys to
do so. This gradient is as large as the scores; it is summed outside over the axes along which the bias is broadcast.

Left out: float32, of which Hopper's tensor cores read 11 bits; skipping by segment.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxtrain_kernels.flash_attention.problem import LOWEST, MASKED, Blocks, Inputs, Options, seen_by_position
from jaxtrain_kernels.varying import vary, varying

DTYPES = (jnp.float16, jnp.bfloat16)
WARPGROUPS = 2  # that compute
ROWS = 64  # of one of them: what one wgmma takes
BLOCK = WARPGROUPS * ROWS
STAGES = 2  # blocks in shared memory at once
LOG2E = math.log2(math.e)


def refuses(x: Inputs, options: Options) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    reasons = []
    if options.slopes is not None:
        reasons.append("it has no slopes")
    if x.q.dtype not in DTYPES:
        reasons.append(f"q, k and v are {x.q.dtype}, not float16 or bfloat16, as tensor cores take them")
    for name, size in (("key", x.q.shape[-1]), ("value", x.v.shape[-1])):
        if size not in (64, 128, 256):
            reasons.append(f"the {name} dim is {size}, not 64, 128 or 256")
    if options.blocks != Blocks():
        reasons.append("its blocks have one size")
    return reasons


def forward(x: Inputs, options: Options) -> tuple[Float[Array, "B L H V"], Float[Array, "B H L"]]:
    """Return the output and the log-sum-exp, -inf where a query sees nothing."""
    plan = _Plan(x, options)
    V, dtype, keys = x.v.shape[-1], x.q.dtype, 2 * plan.columns

    def body(refs, o_ref, lse_ref, q_smem, lse_smem, *rest):
        *o_smem, barrier = rest
        o_smem = o_smem[0] if o_smem else q_smem
        at = plan.position(refs)
        begin, steps = plan.visible(at.block * BLOCK + at.offset, BLOCK, keys, plan.Sp // keys)

        def compute(run):
            at.fetch(refs["q"].at[at.row, at.rows, at.head], q_smem, barrier)
            carry = _vector(LOWEST), _vector(0.0), _zeros(V), at.ids(refs, "segment_ids")
            m, total, acc, _ = run(carry)
            some = jnp.where(total == 0, 1.0, total)
            o_smem.at[at.warpgroup][...] = (acc / _spread(some, acc.shape, 0)).astype(dtype)
            lse_smem.at[at.warpgroup][...] = jnp.where(total == 0, -jnp.inf, m + jnp.log(some))
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(o_smem.at[at.warpgroup], o_ref.at[at.row, at.rows, at.head])
            plgpu.copy_smem_to_gmem(lse_smem.at[at.warpgroup], lse_ref.at[at.row, at.head, at.rows])
            plgpu.wait_smem_to_gmem(0)

        def step(indices, k_smem, v_smem, *rest):
            *key_ids, (m, total, acc, ids) = rest
            s = _product(q_smem.at[at.warpgroup], k_smem.transpose((1, 0)), keys)
            key = (begin + indices[0]) * keys
            bias = plan.bias_at(refs, at.row, at.head, at.first, key, s.shape)
            s, _ = plan.scores(s, 0, at.offset + at.first, key, bias, ids, *_arrived(key_ids))
            top = jnp.maximum(m, jnp.max(s, axis=1))
            keep = jnp.exp2((m - top) * LOG2E)
            e = jnp.exp2((s - _spread(top, s.shape, 0)) * LOG2E)
            acc = _add_product(acc * _spread(keep, acc.shape, 0), e.astype(dtype), v_smem)
            return top, total * keep + jnp.sum(e, axis=1), acc, ids

        specs, operands = plan.keys_of(refs, at, begin, keys)
        _pipeline(step, compute, steps, specs)(*operands)

    o, lse = _call(
        body,
        "flash_attention_forward",
        grid=(plan.Lp // BLOCK, plan.H, plan.B),
        operands=plan.operands(),
        outputs=[
            jax.ShapeDtypeStruct((plan.B, plan.Lp, plan.H, V), dtype),
            jax.ShapeDtypeStruct((plan.B, plan.H, plan.Lp), jnp.float32),
        ],
        scratch=[
            plan.tiles(x.q),
            plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            *([] if x.q.shape[-1] == V else [plan.tiles(x.v)]),  # else o overwrites q, which is no longer read
        ],
    )
    return o[:, : plan.L], lse[:, :, : plan.L]


def backward(
    x: Inputs, lse: Float[Array, "B H L"], delta: Float[Array, "B H L"], do: Float[Array, "B L H V"], options: Options
) -> tuple[Array, Array, Array, Array | None]:
    """Return dq, dk, dv and dbias. `lse` is +inf where a query sees nothing; `delta` is sum(do * o) - dlse."""
    plan = _Plan(x, options)
    gradients = {
        "do": _pad(do, 1, plan.Lp),
        "lse": _pad(lse.astype(jnp.float32), 2, plan.Lp, jnp.inf),
        "delta": _pad(delta.astype(jnp.float32), 2, plan.Lp),
    }
    operands = plan.operands() | gradients
    dq, *dbias = _dq(plan, operands)
    if "bias" in operands:
        operands["bias"] = operands["bias"].swapaxes(2, 3)
    at_once = x.k.shape[-1] + x.v.shape[-1] <= 256
    dk, dv = _dkv(plan, operands, "kv") if at_once else (_dkv(plan, operands, of)[0] for of in "kv")
    folded = None if x.bias is None else _fold_bias(dbias[0][:, :, : plan.L, : plan.S], x.bias)
    return dq[:, : plan.L], dk[:, : plan.S], dv[:, : plan.S], folded


def _fold_bias(dbias: Float[Array, "B H L S"], bias: Float[Array, "#B #H #L #S"]) -> Array:
    """Sum the gradient of every score over the axes along which the bias is broadcast."""
    axes = tuple(axis for axis in range(4) if bias.shape[axis] < dbias.shape[axis])
    return jnp.sum(dbias, axis=axes, keepdims=True).astype(bias.dtype)


def _dq(plan: "_Plan", operands: dict[str, Array]) -> list[Array]:
    """Return dq, and the gradient of every score if there is a bias."""
    K, dtype, scale, keys = operands["q"].shape[-1], operands["q"].dtype, plan.options.scale, plan.columns
    outputs = [jax.ShapeDtypeStruct(operands["q"].shape, dtype)]
    if "bias" in operands:
        outputs.append(jax.ShapeDtypeStruct((plan.B, plan.H, plan.Lp, plan.Sp), jnp.float32))

    def body(refs, dq_ref, *rest):
        *dbias_ref, q_smem, do_smem, barrier = rest
        at = plan.position(refs)
        begin, steps = plan.visible(at.block * BLOCK + at.offset, BLOCK, keys, plan.Sp // keys)
        if dbias_ref:
            begin, steps = 0, plan.Sp // keys

        def compute(run):
            at.fetch(refs["q"].at[at.row, at.rows, at.head], q_smem, barrier)
            at.fetch(refs["do"].at[at.row, at.rows, at.head], do_smem, barrier)
            lse, delta = (_load(refs[name].at[at.row, at.head, at.rows], 1) for name in ("lse", "delta"))
            dq, *_ = run((_zeros(K), lse, delta, at.ids(refs, "segment_ids")))
            q_smem.at[at.warpgroup][...] = (dq * scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_smem.at[at.warpgroup], dq_ref.at[at.row, at.rows, at.head])
            plgpu.wait_smem_to_gmem(0)

        def step(indices, k_smem, v_smem, *rest):
            *key_ids, (dq, lse, delta, ids) = rest
            s = _product(q_smem.at[at.warpgroup], k_smem.transpose((1, 0)), keys)
            key = (begin + indices[0]) * keys
            bias = plan.bias_at(refs, at.row, at.head, at.first, key, s.shape)
            s, slope = plan.scores(s, 0, at.offset + at.first, key, bias, ids, *_arrived(key_ids))
            p = jnp.exp2((s - _spread(lse, s.shape, 0)) * LOG2E)
            dp = _product(do_smem.at[at.warpgroup], v_smem.transpose((1, 0)), keys)
            ds = p * (dp - _spread(delta, s.shape, 0))
            for ref in dbias_ref:
                ref[at.row, at.head, at.rows, pl.ds(key, keys)] = ds
            ds = ds if slope is None else ds * slope
            return _add_product(dq, ds.astype(dtype), k_smem), lse, delta, ids

        specs, key_operands = plan.keys_of(refs, at, begin, keys)
        _pipeline(step, compute, steps, specs)(*key_operands)

    return _call(
        body,
        "flash_attention_dq",
        grid=(plan.Lp // BLOCK, plan.H, plan.B),
        operands=operands,
        outputs=outputs,
        scratch=[plan.tiles(operands["q"]), plan.tiles(operands["do"])],
    )


def _dkv(plan: "_Plan", operands: dict[str, Array], of: str) -> list[Array]:
    """Return dk, dv, or both."""
    dtype, queries = operands["q"].dtype, plan.columns

    def body(refs, *rest):
        *outputs, k_smem, v_smem, barrier = rest
        smems = {"k": k_smem, "v": v_smem}
        at = plan.position(refs)
        begin, count = plan.visible_from_keys(at.block * BLOCK - at.offset, queries)

        def compute(run):
            for name, smem in smems.items():
                at.fetch(refs[name].at[at.row, at.rows, at.head], smem, barrier)
            *sums, _ = run((*(_zeros(operands[name].shape[-1]) for name in of), at.ids(refs, "key_segment_ids")))
            for name, total, ref in zip(of, sums, outputs, strict=True):
                smems[name].at[at.warpgroup][...] = total.astype(dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(smems[name].at[at.warpgroup], ref.at[at.row, at.rows, at.head])
            plgpu.wait_smem_to_gmem(0)

        def step(indices, q_smem, do_smem, lse_smem, delta_smem, *rest):
            *query_ids, (*sums, ids) = rest
            first = (begin + jax.lax.rem(indices[0], count)) * queries
            head = at.head * plan.G + jax.lax.div(indices[0], count)
            s = _product(k_smem.at[at.warpgroup], q_smem.transpose((1, 0)), queries)
            lse, delta, *query_ids = _arrived([lse_smem, delta_smem, *query_ids])
            bias = plan.bias_at(refs, at.row, head, first, at.first, s.shape, turned=True)
            s, slope = plan.scores(s, 1, at.offset + first, at.first, bias, ids, *query_ids)
            p = jnp.exp2((s - _spread(lse, s.shape, 1)) * LOG2E)
            sums = dict(zip(of, sums, strict=True))
            if "v" in of:
                sums["v"] = _add_product(sums["v"], p.astype(dtype), do_smem)
            if "k" in of:
                dp = _product(v_smem.at[at.warpgroup], do_smem.transpose((1, 0)), queries)
                ds = p * (dp - _spread(delta, s.shape, 1))
                ds = ds if slope is None else ds * slope
                sums["k"] = _add_product(sums["k"], ds.astype(dtype), q_smem)
            return *sums.values(), ids

        specs, query_operands = plan.queries_of(refs, at, begin, count, queries)
        _pipeline(step, compute, plan.G * count, specs)(*query_operands)

    return _call(
        body,
        f"flash_attention_d{of}",
        grid=(plan.Sp // BLOCK, plan.J, plan.B),
        operands=operands,
        outputs=[jax.ShapeDtypeStruct(operands[name].shape, dtype) for name in of],
        scratch=[plan.tiles(operands[name]) for name in ("k", "v")],
    )


class _Position(NamedTuple):
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
        return _load(refs[name].at[self.row, self.rows], 1) if name in refs else None


class _Plan:
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
            "q": _pad(x.q * jnp.asarray(self.options.scale, x.q.dtype), 1, self.Lp),
            "k": _pad(x.k, 1, self.Sp),
            "v": _pad(x.v, 1, self.Sp),
        }
        if x.segments is not None:
            of_queries, of_keys = x.segments
            found["segment_ids"] = _pad(of_queries.astype(jnp.int32), 1, self.Lp)
            found["key_segment_ids"] = _pad(of_keys.astype(jnp.int32), 1, self.Sp)
        if x.bias is not None:
            whole = jnp.broadcast_to(x.bias, (*x.bias.shape[:2], self.L, self.S))
            found["bias"] = _pad(_pad(whole, 2, self.Lp), 3, self.Sp)
        if x.offset is not None:
            found["offset"] = x.offset.astype(jnp.int32)[None]
        return found

    def position(self, refs: dict) -> _Position:
        offset = refs["offset"][0] if self.options.offset is None else self.options.offset
        row, head, block, warpgroup = (jax.lax.axis_index(name) for name in ("row", "head", "block", "warpgroup"))
        return _Position(row, head, block, warpgroup, offset)

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

    def keys_of(self, refs: dict, at: _Position, begin, size: int):
        """Return the blocks of keys and values that a pipeline goes along, and the arrays that they are blocks of."""
        head = jax.lax.div(at.head, jnp.int32(self.G))
        specs = [self.block((size, refs[name].shape[-1]), lambda i: (begin + i, 0)) for name in ("k", "v")]
        operands = [refs[name].at[at.row, :, head] for name in ("k", "v")]
        if "key_segment_ids" in refs:
            specs.append(plgpu.BlockSpec((size,), lambda i: (begin + i,)))
            operands.append(refs["key_segment_ids"].at[at.row])
        return specs, operands

    def queries_of(self, refs: dict, at: _Position, begin, count, size: int):
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
            conditions.append(_spread(ids, s.shape, 0) == _spread(other_ids, s.shape, 1))
        return (jnp.where(functools.reduce(jnp.logical_and, conditions), s, MASKED) if conditions else s), slope


def _blocks(low, high, size: int, blocks: int):
    """Return the first block with positions from `low` to `high`, and how many there are, at least one."""
    last = blocks * size - 1
    first, final = (jax.lax.div(jnp.clip(at, 0, last), size) for at in (jnp.int32(low), jnp.int32(high)))
    return first, jnp.maximum(final - first, 0) + 1


def _pad(y: Array, axis: int, to: int, value: float = 0) -> Array:
    widths = [(0, to - y.shape[axis] if i == axis else 0) for i in range(y.ndim)]
    return y if to == y.shape[axis] else jnp.pad(y, widths, constant_values=value)


def _vector(value: float):
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))


def _zeros(columns: int):
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), plgpu.Layout.WGMMA)


def _load(ref, reduced: int):
    """Return a vector in the layout of scores that are reduced along an axis."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(reduced), optimized=False)


def _arrived(refs: Sequence) -> list:
    """Return the vectors along the columns of a tile that a pipeline brought into shared memory."""
    found = [_load(ref, 0) for ref in refs]
    if found:
        plgpu.commit_smem()  # before the copy that overwrites them
    return found


def _spread(y, shape: tuple[int, int], axis: int):
    return jax.lax.broadcast_in_dim(y, shape, [axis])


def _product(a, b, columns: int):
    """Return the product of ROWS rows of `a` with `b`, both in shared memory."""

    def multiply(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((ROWS, columns), jnp.float32))


def _add_product(acc, a, b):
    """Return acc + a b, with `a` in registers and `b` in shared memory."""

    def multiply(ref):
        plgpu.wgmma(ref, a, b)

    return pl.run_state(multiply)(plgpu.ACC.init(acc))


def _pipeline(step: Callable, compute: Callable, steps, specs: Sequence[plgpu.BlockSpec]) -> Callable:
    return plgpu.emit_pipeline_warp_specialized(
        step,
        grid=(steps,),
        memory_registers=40,
        in_specs=specs,
        max_concurrent_steps=STAGES,
        wg_axis="warpgroup",
        num_compute_wgs=WARPGROUPS,
        compute_context=compute,
    )


def _call(body: Callable, name: str, *, grid, operands: dict[str, Array], outputs: list, scratch: list) -> list[Array]:
    """Run `body` with the references of operands by name, then outputs, scratch, and a barrier a warpgroup."""

    def kernel(*refs):
        body(dict(zip(operands, refs, strict=False)), *refs[len(operands) :])

    run = plgpu.kernel(
        kernel,
        out_type=outputs,
        scratch_types=[*scratch, plgpu.Barrier(num_barriers=WARPGROUPS)],
        grid=grid,
        grid_names=("block", "head", "row"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name=name,
    )
    of_mesh = varying(next(iter(operands.values())))
    return list(vary(of_mesh, *run(*operands.values())))  # inside a shard_map, results come without its varying axes
