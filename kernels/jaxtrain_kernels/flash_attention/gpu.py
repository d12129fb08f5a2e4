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

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxtrain_kernels.flash_attention.gpu_plan import Plan, pad
from jaxtrain_kernels.flash_attention.gpu_tiles import (
    BLOCK,
    ROWS,
    WARPGROUPS,
    add_product,
    arrived,
    call,
    load,
    pipeline,
    product,
    spread,
    vector,
    zeros,
)
from jaxtrain_kernels.flash_attention.problem import LOWEST, Blocks, Inputs, Options

DTYPES = (jnp.float16, jnp.bfloat16)
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
    plan = Plan(x, options)
    V, dtype, keys = x.v.shape[-1], x.q.dtype, 2 * plan.columns

    def body(refs, o_ref, lse_ref, q_smem, lse_smem, *rest):
        *o_smem, barrier = rest
        o_smem = o_smem[0] if o_smem else q_smem
        at = plan.position(refs)
        begin, steps = plan.visible(at.block * BLOCK + at.offset, BLOCK, keys, plan.Sp // keys)

        def compute(run):
            at.fetch(refs["q"].at[at.row, at.rows, at.head], q_smem, barrier)
            carry = vector(LOWEST), vector(0.0), zeros(V), at.ids(refs, "segment_ids")
            m, total, acc, _ = run(carry)
            some = jnp.where(total == 0, 1.0, total)
            o_smem.at[at.warpgroup][...] = (acc / spread(some, acc.shape, 0)).astype(dtype)
            lse_smem.at[at.warpgroup][...] = jnp.where(total == 0, -jnp.inf, m + jnp.log(some))
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(o_smem.at[at.warpgroup], o_ref.at[at.row, at.rows, at.head])
            plgpu.copy_smem_to_gmem(lse_smem.at[at.warpgroup], lse_ref.at[at.row, at.head, at.rows])
            plgpu.wait_smem_to_gmem(0)

        def step(indices, k_smem, v_smem, *rest):
            *key_ids, (m, total, acc, ids) = rest
            s = product(q_smem.at[at.warpgroup], k_smem.transpose((1, 0)), keys)
            key = (begin + indices[0]) * keys
            bias = plan.bias_at(refs, at.row, at.head, at.first, key, s.shape)
            s, _ = plan.scores(s, 0, at.offset + at.first, key, bias, ids, *arrived(key_ids))
            top = jnp.maximum(m, jnp.max(s, axis=1))
            keep = jnp.exp2((m - top) * LOG2E)
            e = jnp.exp2((s - spread(top, s.shape, 0)) * LOG2E)
            acc = add_product(acc * spread(keep, acc.shape, 0), e.astype(dtype), v_smem)
            return top, total * keep + jnp.sum(e, axis=1), acc, ids

        specs, operands = plan.keys_of(refs, at, begin, keys)
        pipeline(step, compute, steps, specs)(*operands)

    o, lse = call(
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
    plan = Plan(x, options)
    gradients = {
        "do": pad(do, 1, plan.Lp),
        "lse": pad(lse.astype(jnp.float32), 2, plan.Lp, jnp.inf),
        "delta": pad(delta.astype(jnp.float32), 2, plan.Lp),
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


def _dq(plan: Plan, operands: dict[str, Array]) -> list[Array]:
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
            lse, delta = (load(refs[name].at[at.row, at.head, at.rows], 1) for name in ("lse", "delta"))
            dq, *_ = run((zeros(K), lse, delta, at.ids(refs, "segment_ids")))
            q_smem.at[at.warpgroup][...] = (dq * scale).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_smem.at[at.warpgroup], dq_ref.at[at.row, at.rows, at.head])
            plgpu.wait_smem_to_gmem(0)

        def step(indices, k_smem, v_smem, *rest):
            *key_ids, (dq, lse, delta, ids) = rest
            s = product(q_smem.at[at.warpgroup], k_smem.transpose((1, 0)), keys)
            key = (begin + indices[0]) * keys
            bias = plan.bias_at(refs, at.row, at.head, at.first, key, s.shape)
            s, slope = plan.scores(s, 0, at.offset + at.first, key, bias, ids, *arrived(key_ids))
            p = jnp.exp2((s - spread(lse, s.shape, 0)) * LOG2E)
            dp = product(do_smem.at[at.warpgroup], v_smem.transpose((1, 0)), keys)
            ds = p * (dp - spread(delta, s.shape, 0))
            for ref in dbias_ref:
                ref[at.row, at.head, at.rows, pl.ds(key, keys)] = ds
            ds = ds if slope is None else ds * slope
            return add_product(dq, ds.astype(dtype), k_smem), lse, delta, ids

        specs, key_operands = plan.keys_of(refs, at, begin, keys)
        pipeline(step, compute, steps, specs)(*key_operands)

    return call(
        body,
        "flash_attention_dq",
        grid=(plan.Lp // BLOCK, plan.H, plan.B),
        operands=operands,
        outputs=outputs,
        scratch=[plan.tiles(operands["q"]), plan.tiles(operands["do"])],
    )


def _dkv(plan: Plan, operands: dict[str, Array], of: str) -> list[Array]:
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
            *sums, _ = run((*(zeros(operands[name].shape[-1]) for name in of), at.ids(refs, "key_segment_ids")))
            for name, total, ref in zip(of, sums, outputs, strict=True):
                smems[name].at[at.warpgroup][...] = total.astype(dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(smems[name].at[at.warpgroup], ref.at[at.row, at.rows, at.head])
            plgpu.wait_smem_to_gmem(0)

        def step(indices, q_smem, do_smem, lse_smem, delta_smem, *rest):
            *query_ids, (*sums, ids) = rest
            first = (begin + jax.lax.rem(indices[0], count)) * queries
            head = at.head * plan.G + jax.lax.div(indices[0], count)
            s = product(k_smem.at[at.warpgroup], q_smem.transpose((1, 0)), queries)
            lse, delta, *query_ids = arrived([lse_smem, delta_smem, *query_ids])
            bias = plan.bias_at(refs, at.row, head, first, at.first, s.shape, turned=True)
            s, slope = plan.scores(s, 1, at.offset + first, at.first, bias, ids, *query_ids)
            p = jnp.exp2((s - spread(lse, s.shape, 1)) * LOG2E)
            sums = dict(zip(of, sums, strict=True))
            if "v" in of:
                sums["v"] = add_product(sums["v"], p.astype(dtype), do_smem)
            if "k" in of:
                dp = product(v_smem.at[at.warpgroup], do_smem.transpose((1, 0)), queries)
                ds = p * (dp - spread(delta, s.shape, 1))
                ds = ds if slope is None else ds * slope
                sums["k"] = add_product(sums["k"], ds.astype(dtype), q_smem)
            return *sums.values(), ids

        specs, query_operands = plan.queries_of(refs, at, begin, count, queries)
        pipeline(step, compute, plan.G * count, specs)(*query_operands)

    return call(
        body,
        f"flash_attention_d{of}",
        grid=(plan.Sp // BLOCK, plan.J, plan.B),
        operands=operands,
        outputs=[jax.ShapeDtypeStruct(operands[name].shape, dtype) for name in of],
        scratch=[plan.tiles(operands[name]) for name in ("k", "v")],
    )
