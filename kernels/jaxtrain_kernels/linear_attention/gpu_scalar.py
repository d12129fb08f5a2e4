"""Linear attention with a scalar decay in Mosaic GPU for Hopper: the state stays in registers along a sequence.

A block has one warpgroup. In the forward it takes a head and 64 value channels, and its state is K x 64. In the
backward it takes a head and 64 key channels, last chunk first, and the gradient of its state is 64 x V. Chunks have 64
steps. The forward has two slots of shared memory for them: the next chunk is copied while this one is computed. Two
things are computed outside: the weights of the decay, as on TPU (tpu_decay.ScalarDecay), and the sum over blocks of
different key channels of the gradients of values and log-decays.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxtrain_kernels.gpu_chunks import (
    CHUNK,
    TILE,
    ScalarWeights,
    channels,
    for_one_head_of_each_group,
    from_global,
    kernel,
    matrix,
    of_key_heads,
    product,
    steps_of,
    tiles,
    turned,
    whole_chunks,
)
from jaxtrain_kernels.linear_attention.tpu_decay import ScalarDecay

SLOTS = 2


def forward(q, k, v, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py, chunks always of 64."""
    L, V = q.shape[1], v.shape[3]
    (rows,), (q, k, v) = ScalarDecay.gates(log_decay, runs, CHUNK), map(whole_chunks, (q, k, v))
    B, _, H, K = q.shape
    o, final = kernel(
        _forward_kernel,
        "linear_attention_forward",
        out_type=(
            jax.ShapeDtypeStruct((*q.shape[:3], V), v.dtype),
            jax.ShapeDtypeStruct((B, H, K, V), jnp.float32),
        ),
        scratch_types=(
            tiles(q.dtype, SLOTS, K // TILE),
            tiles(q.dtype, SLOTS, K // TILE),
            tiles(q.dtype, SLOTS),
            plgpu.SMEM((SLOTS, 5, CHUNK), jnp.float32),
            *(tiles(q.dtype) for _ in range(3)),
            tiles(q.dtype, K // TILE),
            plgpu.Barrier(num_arrivals=2 * K // TILE + 2, num_barriers=SLOTS),
        ),
        grid=(B, H, V // TILE),
        grid_names=("batch", "head", "tile"),
    )(q, k, v, rows, state)
    return o[:, :L], final[:, :: H // k.shape[2]]


def _forward_kernel(q_ref, k_ref, v_ref, rows_ref, first_ref, o_ref, final_ref, *scratch):
    q, k, v, rows, weighted, near, out, tiles, full = scratch
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, key_tiles, dtype = q_ref.shape[1] // CHUNK, tiles.shape[0], q.dtype
    own = channels(tile)

    def fetch(chunk, slot):
        steps = steps_of(chunk)
        for part in range(key_tiles):
            of_part = channels(part)
            plgpu.copy_gmem_to_smem(q_ref.at[batch, steps, head, of_part], q.at[slot, part], full.at[slot])
            plgpu.copy_gmem_to_smem(k_ref.at[batch, steps, key_head, of_part], k.at[slot, part], full.at[slot])
        plgpu.copy_gmem_to_smem(v_ref.at[batch, steps, key_head, own], v.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, key_head, chunk], rows.at[slot], full.at[slot])

    def advance(chunk, states):
        slot = lax.rem(chunk, SLOTS)
        plgpu.barrier_wait(full.at[slot])
        decay = ScalarWeights(rows.at[slot])
        for part, state in enumerate(states):
            tiles[part] = state.astype(dtype)
        v_out = matrix(v.at[slot])
        weighted[...] = (v_out * decay.out).astype(dtype)
        plgpu.commit_smem()
        scores = product(*((q.at[slot, part], turned(k.at[slot, part])) for part in range(key_tiles)))
        from_state = product(*((q.at[slot, part], tiles.at[part]) for part in range(key_tiles)))
        near[...] = (scores * decay.pairs()).astype(dtype)
        plgpu.commit_smem()
        output = from_state * decay.into + product((near, v.at[slot]))
        states = [
            state * decay.keep + product((turned(k.at[slot, part]), weighted)) for part, state in enumerate(states)
        ]
        plgpu.wait_smem_to_gmem(0)
        out[...] = output.astype(dtype)
        plgpu.commit_smem()  # also: all threads are done with this slot
        plgpu.copy_smem_to_gmem(out, o_ref.at[batch, steps_of(chunk), head, own])
        pl.when(chunk + SLOTS < chunks)(lambda: fetch(chunk + SLOTS, slot))
        return tuple(states)

    for chunk in range(min(SLOTS, chunks)):
        fetch(chunk, chunk)
    states = tuple(from_global(first_ref.at[batch, key_head, channels(i), own]) for i in range(key_tiles))
    states = lax.fori_loop(0, chunks, advance, states)
    for part, state in enumerate(states):
        final_ref[batch, head, channels(part), own] = state
    plgpu.wait_smem_to_gmem(0)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, log_decay, runs, state = residuals
    L, groups = q.shape[1], q.shape[2] // k.shape[2]
    (rows,), (q, k, v, do) = ScalarDecay.gates(log_decay, runs, CHUNK), map(whole_chunks, (q, k, v, gradients[0]))
    dfinal = for_one_head_of_each_group(gradients[1], groups)
    (B, padded, H, K), V = q.shape, v.shape[3]
    of_values = jax.ShapeDtypeStruct((K // TILE, B, padded, H, V), jnp.float32)
    of_weights = jax.ShapeDtypeStruct((K // TILE, B, H, padded // CHUNK, 2, CHUNK), jnp.float32)
    like = jax.ShapeDtypeStruct(q.shape, q.dtype)
    dq, dk, dv, dweights, dstate = kernel(
        _backward_kernel,
        "linear_attention_backward",
        out_type=(like, like, of_values, of_weights, jax.ShapeDtypeStruct((B, H, K, V), jnp.float32)),
        scratch_types=(
            *(tiles(q.dtype, K // TILE) for _ in range(2)),
            *(tiles(q.dtype, V // TILE) for _ in range(4)),
            plgpu.SMEM((5, CHUNK), jnp.float32),
            *(tiles(q.dtype) for _ in range(5)),
            plgpu.Barrier(num_arrivals=(2 * K + 3 * V) // TILE + 1),
        ),
        grid=(B, H, K // TILE),
        grid_names=("batch", "head", "tile"),
    )(q, k, v, do, rows, _states(k, v, rows, state), dfinal)

    dsums, leaves = jnp.moveaxis(dweights.sum(axis=0), 3, 0)  # [B, H, N, C]
    dsums = dsums.at[..., -1].add(leaves.sum(axis=-1))
    dlog_decay = lax.cumsum(dsums, axis=3, reverse=True).reshape(B, H, padded, 1).swapaxes(1, 2)
    dk, dv, dlog_decay = (of_key_heads(x, groups)[:, :L] for x in (dk, dv.sum(axis=0), dlog_decay))
    dstate = dstate.reshape(B, -1, groups, K, V).sum(axis=2)
    return dq[:, :L], dk.astype(k.dtype), dv.astype(v.dtype), dlog_decay, None, dstate


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, rows_ref, states_ref, dfinal_ref, *refs):
    dq_ref, dk_ref, dv_ref, dweights_ref, dfirst_ref, q, k, v, do, states, dtiles, rows, *tiles, full = refs
    near, dnear, weighted, out, second_out = tiles
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, key_tiles, value_tiles, dtype = q_ref.shape[1] // CHUNK, q.shape[0], v.shape[0], q.dtype
    own = channels(tile)

    def fetch(chunk):
        steps = steps_of(chunk)
        for part in range(key_tiles):
            of_part = channels(part)
            plgpu.copy_gmem_to_smem(q_ref.at[batch, steps, head, of_part], q.at[part], full)
            plgpu.copy_gmem_to_smem(k_ref.at[batch, steps, key_head, of_part], k.at[part], full)
        for part in range(value_tiles):
            of_part = channels(part)
            plgpu.copy_gmem_to_smem(v_ref.at[batch, steps, key_head, of_part], v.at[part], full)
            plgpu.copy_gmem_to_smem(do_ref.at[batch, steps, head, of_part], do.at[part], full)
            plgpu.copy_gmem_to_smem(states_ref.at[batch, key_head, chunk, own, of_part], states.at[part], full)
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, key_head, chunk], rows, full)

    def advance(step, dstates):
        chunk = chunks - 1 - step
        steps = steps_of(chunk)
        fetch(chunk)
        plgpu.barrier_wait(full)
        decay = ScalarWeights(rows)
        for part, dstate in enumerate(dstates):
            dtiles[part] = dstate.astype(dtype)
        own_q = matrix(q.at[tile])
        own_k = matrix(k.at[tile])
        weighted[...] = (own_q * decay.into).astype(dtype)
        plgpu.commit_smem()
        # The first block alone counts the part of dv that all key channels share.
        pairs, counted = decay.pairs(), jnp.where(tile == 0, 1.0, 0.0)
        scores = product(*((q.at[i], turned(k.at[i])) for i in range(key_tiles)))
        near[...] = (scores * pairs * counted).astype(dtype)
        dscores = product(*((do.at[i], turned(v.at[i])) for i in range(value_tiles)))
        dnear[...] = (dscores * pairs).astype(dtype)
        plgpu.commit_smem()
        into, leaving = decay.into, decay.out
        dq = product((dnear, k.at[tile]))
        dq += into * product(*((do.at[i], turned(states.at[i])) for i in range(value_tiles)))
        dk_out = leaving * product(*((v.at[i], turned(dtiles.at[i])) for i in range(value_tiles)))
        dk = product((turned(dnear), q.at[tile])) + dk_out
        left = (own_k * dk_out).sum(axis=1)
        new_dstates = []
        for part, dstate in enumerate(dstates):
            dv = product((turned(near), do.at[part])) + leaving * product((k.at[tile], dtiles.at[part]))
            dv_ref[tile, batch, steps, head, channels(part)] = dv
            before = matrix(states.at[part])
            left += decay.keep * (before * dstate).sum(axis=1)
            new_dstates.append(decay.keep * dstate + product((turned(weighted), do.at[part])))
        dweights_ref[tile, batch, head, chunk, 0] = (own_q * dq - own_k * dk).sum(axis=1)
        dweights_ref[tile, batch, head, chunk, 1] = left
        plgpu.wait_smem_to_gmem(0)
        out[...], second_out[...] = dq.astype(dtype), dk.astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, dq_ref.at[batch, steps, head, own])
        plgpu.copy_smem_to_gmem(second_out, dk_ref.at[batch, steps, head, own])
        return tuple(new_dstates)

    parts = [channels(i) for i in range(value_tiles)]
    dstates = tuple(from_global(dfinal_ref.at[batch, head, own, part]) for part in parts)
    dstates = lax.fori_loop(0, chunks, advance, dstates)
    for part, dstate in zip(parts, dstates, strict=True):
        dfirst_ref[batch, head, own, part] = dstate
    plgpu.wait_smem_to_gmem(0)


def _states(k, v, rows, state) -> Float[Array, "B J N K V"]:
    """Return the state before every chunk, in the dtype of the products it enters."""
    B, L, J, K = k.shape
    V = v.shape[3]
    return kernel(
        _states_kernel,
        "linear_attention_states",
        out_type=(jax.ShapeDtypeStruct((B, J, L // CHUNK, K, V), k.dtype),),
        scratch_types=(
            *(tiles(k.dtype) for _ in range(4)),
            plgpu.SMEM((5, CHUNK), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
        ),
        grid=(B, J, K // TILE, V // TILE),
        grid_names=("batch", "head", "key_tile", "value_tile"),
    )(k, v, rows, state)[0]


def _states_kernel(k_ref, v_ref, rows_ref, first_ref, states_ref, k, v, weighted, out, rows, full):
    batch, head, key_tile, value_tile = (lax.axis_index(n) for n in ("batch", "head", "key_tile", "value_tile"))
    keys, values = channels(key_tile), channels(value_tile)

    def advance(chunk, state):
        steps = steps_of(chunk)
        plgpu.copy_gmem_to_smem(k_ref.at[batch, steps, head, keys], k, full)
        plgpu.copy_gmem_to_smem(v_ref.at[batch, steps, head, values], v, full)
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, head, chunk], rows, full)
        plgpu.wait_smem_to_gmem(0)
        out[...] = state.astype(out.dtype)
        plgpu.barrier_wait(full)
        decay = ScalarWeights(rows)
        leaving = matrix(v) * decay.out
        weighted[...] = leaving.astype(weighted.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, states_ref.at[batch, head, chunk, keys, values])
        state = decay.keep * state + product((turned(k), weighted))
        plgpu.commit_smem()  # all threads are done with the inputs
        return state

    lax.fori_loop(0, k_ref.shape[1] // CHUNK, advance, from_global(first_ref.at[batch, head, keys, values]))
    plgpu.wait_smem_to_gmem(0)
