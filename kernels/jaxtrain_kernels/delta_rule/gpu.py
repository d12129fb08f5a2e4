"""The delta rule, plain and gated, in Mosaic GPU for Hopper: the state stays in registers along a sequence.

A block has one warpgroup and takes a head and 64 value channels. T = I + beta tril(decay * K K^T, -1) does not depend
on values, so the rows U = T^-1 beta (V - (into * K) S) of these channels need no others (see xla.py). Every block
inverts T itself, by doubling: if X is the inverse of T's diagonal blocks, and C the entries of T that join two of them,
then X - X C X is the inverse of the diagonal blocks of twice the size. No entry grows on the way, as powers of T - I
would.

In the backward, blocks of different value channels each compute a part of the gradients of queries, keys, betas and
log-decays; these are summed outside. Chunks have 64 steps; bfloat16 and float16 only.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxtrain_kernels import gpu_chunks
from jaxtrain_kernels.chunks import split
from jaxtrain_kernels.gpu_chunks import (
    CHUNK,
    LEVELS,
    TILE,
    ScalarWeights,
    channels,
    for_one_head_of_each_group,
    from_global,
    index,
    kernel,
    matrix,
    of_key_heads,
    pairs_of,
    product,
    rows,
    steps_of,
    tiles,
    turned,
    whole_chunks,
)
from jaxtrain_kernels.linear_attention.tpu_decay import ScalarDecay


def refuses(q: Float[Array, "B L H K"], k: Array, v: Array) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    return gpu_chunks.refuses(q, v)


def forward(q, k, v, beta, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py, chunks always of 64."""
    L, V = q.shape[1], v.shape[3]
    gates, (q, k, v) = _gates(beta, log_decay, runs), map(whole_chunks, (q, k, v))
    (B, _, H, K), dtype = q.shape, q.dtype
    o, final = kernel(
        _forward_kernel,
        "delta_rule_forward",
        out_type=(jax.ShapeDtypeStruct((*q.shape[:3], V), dtype), jax.ShapeDtypeStruct((B, H, K, V), jnp.float32)),
        scratch_types=(
            *(tiles(dtype, K // TILE) for _ in range(3)),
            *(tiles(dtype) for _ in range(4)),
            *_memory(dtype),
            plgpu.Barrier(num_arrivals=2 * K // TILE + 3),
        ),
        grid=(B, H, V // TILE),
        grid_names=("batch", "head", "tile"),
    )(q, k, v, *gates, state)
    return o[:, :L], final[:, :: H // k.shape[2]]


def _forward_kernel(q_ref, k_ref, v_ref, rows_ref, beta_ref, first_ref, o_ref, final_ref, *scratch):
    q, k, states_, v, near, weighted, out, *memory, full = scratch
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    parts, dtype = range(q.shape[0]), q.dtype

    def advance(chunk, states):
        at = batch, steps_of(chunk)
        for part in parts:
            plgpu.copy_gmem_to_smem(q_ref.at[*at, head, channels(part)], q.at[part], full)
            plgpu.copy_gmem_to_smem(k_ref.at[*at, key_head, channels(part)], k.at[part], full)
        plgpu.copy_gmem_to_smem(v_ref.at[*at, key_head, channels(tile)], v, full)
        for part, state in zip(parts, states, strict=True):
            states_[part] = state.astype(dtype)
        c = _Chunk(k, v, states_, memory)
        c.fetch(rows_ref, beta_ref, (batch, key_head, chunk), full)
        u = c.added()
        weighted[...] = (u * c.decay.out).astype(dtype)
        near[...] = (product(*((q.at[i], turned(k.at[i])) for i in parts)) * c.pairs).astype(dtype)
        plgpu.commit_smem()
        o = c.decay.into * product(*((q.at[i], states_.at[i]) for i in parts)) + product((near, c.u))
        states = [
            c.decay.keep * state + product((turned(k.at[i]), weighted)) for i, state in zip(parts, states, strict=True)
        ]
        plgpu.wait_smem_to_gmem(0)
        out[...] = o.astype(dtype)
        plgpu.commit_smem()  # also: all threads are done with the inputs
        plgpu.copy_smem_to_gmem(out, o_ref.at[*at, head, channels(tile)])
        return tuple(states)

    states = tuple(from_global(first_ref.at[batch, key_head, channels(i), channels(tile)]) for i in parts)
    states = lax.fori_loop(0, q_ref.shape[1] // CHUNK, advance, states)
    for part, state in zip(parts, states, strict=True):
        final_ref[batch, head, channels(part), channels(tile)] = state
    plgpu.wait_smem_to_gmem(0)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, beta, log_decay, runs, state = residuals
    L, groups = q.shape[1], q.shape[2] // k.shape[2]
    gates, (q, k, v, do) = _gates(beta, log_decay, runs), map(whole_chunks, (q, k, v, gradients[0]))
    (B, padded, H, K), V, dtype = q.shape, v.shape[3], q.dtype
    of_tiles = jax.ShapeDtypeStruct((V // TILE, *q.shape), jnp.float32)
    dq, dk, dv, dsteps, dstate = kernel(
        _backward_kernel,
        "delta_rule_backward",
        out_type=(
            of_tiles,
            of_tiles,
            jax.ShapeDtypeStruct((B, padded, H, V), dtype),
            jax.ShapeDtypeStruct((V // TILE, B, H, padded // CHUNK, 3, CHUNK), jnp.float32),
            jax.ShapeDtypeStruct((B, H, K, V), jnp.float32),
        ),
        scratch_types=(
            *(tiles(dtype, K // TILE) for _ in range(4)),
            *(tiles(dtype) for _ in range(11)),
            *_memory(dtype),
            plgpu.Barrier(num_arrivals=3 * K // TILE + 4),
        ),
        grid=(B, H, V // TILE),
        grid_names=("batch", "head", "tile"),
    )(q, k, v, do, *gates, _states(k, v, gates, state), for_one_head_of_each_group(gradients[1], groups))
    dsums, leaves, dbeta = jnp.moveaxis(dsteps.sum(axis=0), 3, 0)  # [B, H, N, C]
    dsums = lax.cumsum(dsums.at[..., -1].add(leaves.sum(axis=-1)), axis=3, reverse=True)
    of_steps = (x.reshape(B, H, padded, 1).swapaxes(1, 2) for x in (dbeta, dsums))
    dk, dv, dbeta, dlog_decay = (of_key_heads(x, groups)[:, :L] for x in (dk.sum(axis=0), dv, *of_steps))
    dstate = dstate.reshape(B, -1, groups, K, V).sum(axis=2)
    dq = dq.sum(axis=0)[:, :L].astype(dtype)
    return dq, dk.astype(dtype), dv.astype(dtype), dbeta[..., 0], dlog_decay[..., 0], None, dstate


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, rows_ref, beta_ref, states_ref, dfinal_ref, *refs):
    dq_ref, dk_ref, dv_ref, dsteps_ref, dfirst_ref, q, k, states, dstates_, v, do, *refs = refs
    near, dnear, doverlap, du_, dright_, dv_, into_do, into_dv, weighted, *memory, full = refs
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, parts, dtype = q_ref.shape[1] // CHUNK, range(q.shape[0]), q.dtype

    def advance(step, dstates):
        chunk = chunks - 1 - step
        at = batch, steps_of(chunk)
        for part in parts:
            plgpu.copy_gmem_to_smem(q_ref.at[*at, head, channels(part)], q.at[part], full)
            plgpu.copy_gmem_to_smem(k_ref.at[*at, key_head, channels(part)], k.at[part], full)
            source = states_ref.at[batch, key_head, chunk, channels(part), channels(tile)]
            plgpu.copy_gmem_to_smem(source, states.at[part], full)
        plgpu.copy_gmem_to_smem(v_ref.at[*at, key_head, channels(tile)], v, full)
        plgpu.copy_gmem_to_smem(do_ref.at[*at, head, channels(tile)], do, full)
        for part, dstate in zip(parts, dstates, strict=True):
            dstates_[part] = dstate.astype(dtype)
        c = _Chunk(k, v, states, memory)
        c.fetch(rows_ref, beta_ref, (batch, key_head, chunk), full)
        u = c.added()
        w, beta = c.decay, c.beta
        weighted[...] = (u * w.out).astype(dtype)
        near[...] = (product(*((q.at[i], turned(k.at[i])) for i in parts)) * c.pairs).astype(dtype)
        into_do[...] = (w.into * matrix(do)).astype(dtype)
        plgpu.commit_smem()
        du = product((turned(near), do)) + w.out * product(*((k.at[i], dstates_.at[i]) for i in parts))
        dnear[...] = (product((do, turned(c.u))) * c.pairs).astype(dtype)
        du_[...] = du.astype(dtype)
        plgpu.commit_smem()
        dright = product((turned(c.inverse), du_))
        dbeta = (dright * c.error).sum(axis=1)
        dright_[...] = dright.astype(dtype)
        into_dv[...] = (w.into * beta * dright).astype(dtype)
        plgpu.wait_smem_to_gmem(0)
        dv_[...] = (beta * dright).astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(dv_, dv_ref.at[*at, head, channels(tile)])
        dlower = jnp.where(index(0) > index(1), -product((dright_, turned(c.u))), 0.0)
        dbeta += (dlower * c.overlap).sum(axis=1)
        doverlap[...] = (dlower * beta * c.pairs).astype(dtype)
        plgpu.commit_smem()
        dsums, left, new_dstates = [], [], []
        for i, dstate in zip(parts, dstates, strict=True):
            own_q, own_k = matrix(q.at[i]), matrix(k.at[i])
            dq = product((dnear, k.at[i]), (into_do, turned(states.at[i])))
            gains = product((doverlap, k.at[i])) - product((into_dv, turned(states.at[i])))
            losses = product((turned(dnear), q.at[i]), (turned(doverlap), k.at[i]))
            dk_out = product((weighted, turned(dstates_.at[i])))
            dq_ref[tile, *at, head, channels(i)] = dq
            dk_ref[tile, *at, head, channels(i)] = gains + losses + dk_out
            dsums.append((own_q * dq + own_k * (gains - losses - dk_out)).sum(axis=1))
            left.append((own_k * dk_out + w.keep * matrix(states.at[i]) * dstate).sum(axis=1))
            gained = product((turned(q.at[i]), into_do)) - product((turned(k.at[i]), into_dv))
            new_dstates.append(w.keep * dstate + gained)
        for row, found in enumerate((dsums, left, [dbeta])):
            dsteps_ref[tile, batch, head, chunk, row] = sum(found[1:], start=found[0])
        plgpu.commit_smem()  # all threads are done with the inputs
        return tuple(new_dstates)

    dstates = tuple(from_global(dfinal_ref.at[batch, head, channels(i), channels(tile)]) for i in parts)
    dstates = lax.fori_loop(0, chunks, advance, dstates)
    for part, dstate in zip(parts, dstates, strict=True):
        dfirst_ref[batch, head, channels(part), channels(tile)] = dstate
    plgpu.wait_smem_to_gmem(0)


def _states(k, v, gates, state) -> Float[Array, "B J N K V"]:
    """Return the state before every chunk, in the dtype of the products it enters."""
    B, L, J, K = k.shape
    V = v.shape[3]
    return kernel(
        _states_kernel,
        "delta_rule_states",
        out_type=(jax.ShapeDtypeStruct((B, J, L // CHUNK, K, V), k.dtype),),
        scratch_types=(
            *(tiles(k.dtype, K // TILE) for _ in range(2)),
            *(tiles(k.dtype) for _ in range(2)),
            *_memory(k.dtype),
            plgpu.Barrier(num_arrivals=K // TILE + 3),
        ),
        grid=(B, J, V // TILE),
        grid_names=("batch", "head", "tile"),
    )(k, v, *gates, state)[0]


def _states_kernel(k_ref, v_ref, rows_ref, beta_ref, first_ref, states_ref, k, states_, v, weighted, *refs):
    *memory, full = refs
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    parts = range(k.shape[0])

    def advance(chunk, states):
        at = batch, steps_of(chunk), head
        for part in parts:
            plgpu.copy_gmem_to_smem(k_ref.at[*at, channels(part)], k.at[part], full)
        plgpu.copy_gmem_to_smem(v_ref.at[*at, channels(tile)], v, full)
        plgpu.wait_smem_to_gmem(0)
        for part, state in zip(parts, states, strict=True):
            states_[part] = state.astype(states_.dtype)
        c = _Chunk(k, v, states_, memory)
        c.fetch(rows_ref, beta_ref, (batch, head, chunk), full)
        weighted[...] = (c.added() * c.decay.out).astype(weighted.dtype)
        plgpu.commit_smem()
        for part in parts:
            position = batch, head, chunk, channels(part), channels(tile)
            plgpu.copy_smem_to_gmem(states_.at[part], states_ref.at[*position])
        states = [
            c.decay.keep * state + product((turned(k.at[i]), weighted)) for i, state in zip(parts, states, strict=True)
        ]
        plgpu.commit_smem()  # all threads are done with the inputs
        return tuple(states)

    states = tuple(from_global(first_ref.at[batch, head, channels(i), channels(tile)]) for i in parts)
    lax.fori_loop(0, k_ref.shape[1] // CHUNK, advance, states)
    plgpu.wait_smem_to_gmem(0)


class _Chunk:
    """What one chunk adds to the state before it, in 64 value channels, with the parts that the gradient needs."""

    def __init__(self, k, v, states, memory):
        self.k, self.v, self.states = k, v, states
        self.of_steps, self.betas, self.inverses, self.joints, self.joined, self.right, self.u = memory
        self.inverse = self.inverses.at[LEVELS % 2]

    def fetch(self, rows_ref, beta_ref, position: tuple, full) -> None:
        """Copy the chunk's weights, and wait until all copies that signal `full` have arrived."""
        plgpu.copy_gmem_to_smem(rows_ref.at[*position], self.of_steps, full)
        plgpu.copy_gmem_to_smem(beta_ref.at[*position], self.betas, full)
        plgpu.barrier_wait(full)
        plgpu.commit_smem()  # the states, too
        self.decay, self.beta = ScalarWeights(self.of_steps), rows(self.betas)
        self.pairs = self.decay.pairs()

    def added(self) -> Float[Array, "C 64"]:
        """Return the rows that are added to the state; store them and the inverse of T in shared memory."""
        parts, dtype = range(self.k.shape[0]), self.k.dtype
        self.overlap = product(*((self.k.at[i], turned(self.k.at[i])) for i in parts)) * self.pairs
        self._invert(jnp.where(index(0) > index(1), self.beta * self.overlap, 0.0))
        self.error = matrix(self.v) - self.decay.into * product(*((self.k.at[i], self.states.at[i]) for i in parts))
        self.right[...] = (self.beta * self.error).astype(dtype)
        plgpu.commit_smem()
        u = product((self.inverse, self.right))
        self.u[...] = u.astype(dtype)
        return u

    def _invert(self, lower: Float[Array, "C C"]) -> None:
        """Store the inverse of I + lower in `inverse`; the next commit makes it visible."""
        dtype = self.k.dtype

        def double(level, inverse):
            slot = lax.rem(level, 2)
            self.inverses[slot] = inverse.astype(dtype)
            self.joints[...] = jnp.where(pairs_of(level), lower, 0.0).astype(dtype)
            plgpu.commit_smem()
            self.joined[...] = product((self.joints, self.inverses.at[slot])).astype(dtype)
            plgpu.commit_smem()
            return inverse - product((self.inverses.at[slot], self.joined))

        of_pairs = jnp.where(index(0) == index(1), 1.0, jnp.where(pairs_of(0), -lower, 0.0))
        self.inverses[LEVELS % 2] = lax.fori_loop(1, LEVELS, double, of_pairs).astype(dtype)


def _memory(dtype: jnp.dtype) -> tuple:
    """Return the shared memory of `_Chunk`: weights, betas, and matrices."""
    vectors = plgpu.SMEM((5, CHUNK), jnp.float32), plgpu.SMEM((CHUNK,), jnp.float32)
    return *vectors, tiles(dtype, 2), *(tiles(dtype) for _ in range(4))


def _gates(beta: Float[Array, "B L J"], log_decay: Float[Array, "B L J"], runs) -> tuple[Array, Array]:
    """Return the weights' rows [B J N 5 C] and betas [B J N C]."""
    (of_steps,) = ScalarDecay.gates(log_decay[..., None], runs, CHUNK)
    return of_steps, split(beta, CHUNK).transpose(1, 3, 0, 2)
