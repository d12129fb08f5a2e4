"""Linear attention with a gate for every key channel in Mosaic GPU for Hopper.

As in gpu_scalar.py the state stays in registers along a sequence. Here the decay between two steps differs by channel.
It cannot be written as a factor of the one step times a factor of the other without exponents above 0. So pairs of
steps are sorted by the smallest aligned block of 2, 4, ..., 64 steps that holds both. The two steps are in different
halves of it, and both decay towards its middle. For each of these six levels, with

    x_i = q_i exp(sum of log-decays from the middle to i)  for the steps of later halves, each for its own block,
    x_j = k_j exp(sum of log-decays from j to the middle)  for those of earlier halves,

the pairs' scores are entries of x x^T. This is the two-level form of Yang et al. (2023), arXiv:2312.06635, section 4.3,
with a matrix product for every level: six small products on a tensor core cost less than sums over channels on other
units. The sums of log-decays are products with matrices of zeros and ones, too. For these, a log-decay is two bfloat16
numbers, high and low; the error of an exponential is at most 3e-6. bfloat16 and float16 only.

In the backward, a block takes a head and 64 key channels. It computes every gradient of these channels alone; only the
gradient of values is a sum over blocks.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.chunks import split
from jaxtrain_kernels.gpu_chunks import (
    CHUNK,
    LEVELS,
    TILE,
    along_rows,
    channels,
    columns,
    for_one_head_of_each_group,
    from_global,
    index,
    kernel,
    later,
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
from jaxtrain_kernels.linear_attention.tpu_decay import split_runs

RUNS, ALIVE, LASTS = range(3)  # rows of `_gates`
SLOTS = 2


def forward(q, k, v, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py, chunks always of 64."""
    L, V = q.shape[1], v.shape[3]
    gates, (q, k, v) = _gates(log_decay, runs), map(whole_chunks, (q, k, v))
    (B, _, H, K), dtype = q.shape, q.dtype
    parts = K // TILE
    slots = SLOTS if parts == 1 else 1  # as many as fit shared memory
    o, final = kernel(
        _forward_kernel,
        "linear_attention_forward",
        out_type=(jax.ShapeDtypeStruct((*q.shape[:3], V), dtype), jax.ShapeDtypeStruct((B, H, K, V), jnp.float32)),
        scratch_types=(
            tiles(dtype, slots, parts),
            tiles(dtype, slots, parts),
            tiles(dtype, slots),
            tiles(jnp.bfloat16, slots, parts),
            tiles(jnp.bfloat16, slots, parts),
            plgpu.SMEM((slots, 3, CHUNK), jnp.float32),
            plgpu.SMEM((slots, K), jnp.float32),
            tiles(dtype),
            tiles(dtype),
            tiles(dtype, parts),
            *_levels_memory(dtype, parts),
            plgpu.Barrier(num_arrivals=4 * parts + 3, num_barriers=slots),
        ),
        grid=(B, H, V // TILE),
        grid_names=("batch", "head", "tile"),
    )(q, k, v, *gates, state)
    return o[:, :L], final[:, :: H // k.shape[2]]


def _forward_kernel(q_ref, k_ref, v_ref, high_ref, low_ref, rows_ref, keep_ref, first_ref, o_ref, final_ref, *scratch):
    q, k, v, high, low, of_steps, keep, near, out, states_, patterns, x, full = scratch
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, (slots, parts), dtype = q_ref.shape[1] // CHUNK, q.shape[:2], q.dtype

    def fetch(chunk, slot):
        for part in range(parts):
            for ref, smem, of in ((q_ref, q, head), (k_ref, k, key_head), (high_ref, high, key_head)):
                source = ref.at[batch, steps_of(chunk), of, channels(part)]
                plgpu.copy_gmem_to_smem(source, smem.at[slot, part], full.at[slot])
            source = low_ref.at[batch, steps_of(chunk), key_head, channels(part)]
            plgpu.copy_gmem_to_smem(source, low.at[slot, part], full.at[slot])
        source = v_ref.at[batch, steps_of(chunk), key_head, channels(tile)]
        plgpu.copy_gmem_to_smem(source, v.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, chunk], of_steps.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(keep_ref.at[batch, key_head, chunk], keep.at[slot], full.at[slot])

    def advance(chunk, states):
        slot = lax.rem(chunk, slots)
        plgpu.barrier_wait(full.at[slot])
        levels = _Levels(q.at[slot], k.at[slot], high.at[slot], low.at[slot], of_steps.at[slot], patterns, x)
        for part, state in enumerate(states):
            states_[part] = state.astype(dtype)
        levels.begin()

        def add_level(level, scores):
            levels.store(level)
            plgpu.commit_smem()
            return scores + levels.scores(level)

        scores = lax.fori_loop(0, LEVELS, add_level, levels.own_scores())
        near[...] = scores.astype(dtype)
        levels.store_into_and_out()
        plgpu.commit_smem()
        o = product(*((q.at[slot, part], states_.at[part]) for part in range(parts)), (near, v.at[slot]))
        states = [
            state * rows(keep.at[slot, channels(part)]) + product((turned(k.at[slot, part]), v.at[slot]))
            for part, state in enumerate(states)
        ]
        plgpu.wait_smem_to_gmem(0)
        out[...] = o.astype(dtype)
        plgpu.commit_smem()  # also: all threads are done with this slot
        plgpu.copy_smem_to_gmem(out, o_ref.at[batch, steps_of(chunk), head, channels(tile)])
        pl.when(chunk + slots < chunks)(lambda: fetch(chunk + slots, slot))
        return tuple(states)

    for chunk in range(min(slots, chunks)):
        fetch(chunk, chunk)
    states = tuple(from_global(first_ref.at[batch, key_head, channels(i), channels(tile)]) for i in range(parts))
    states = lax.fori_loop(0, chunks, advance, states)
    for part, state in enumerate(states):
        final_ref[batch, head, channels(part), channels(tile)] = state
    plgpu.wait_smem_to_gmem(0)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, log_decay, runs, state = residuals
    L, groups = q.shape[1], q.shape[2] // k.shape[2]
    gates, (q, k, v, do) = _gates(log_decay, runs), map(whole_chunks, (q, k, v, gradients[0]))
    (B, padded, H, K), V, dtype = q.shape, v.shape[3], q.dtype
    dq, dk, dv, dsums, left, dstate = kernel(
        _backward_kernel,
        "linear_attention_backward",
        out_type=(
            jax.ShapeDtypeStruct(q.shape, dtype),
            jax.ShapeDtypeStruct(q.shape, dtype),
            jax.ShapeDtypeStruct((K // TILE, B, padded, H, V), jnp.float32),
            jax.ShapeDtypeStruct(q.shape, jnp.float32),
            jax.ShapeDtypeStruct((B, H, padded // CHUNK, K), jnp.float32),
            jax.ShapeDtypeStruct((B, H, K, V), jnp.float32),
        ),
        scratch_types=(
            tiles(dtype, 1),
            tiles(dtype, 1),
            *(tiles(dtype, V // TILE) for _ in range(4)),
            tiles(jnp.bfloat16, 1),
            tiles(jnp.bfloat16, 1),
            plgpu.SMEM((3, CHUNK), jnp.float32),
            plgpu.SMEM((TILE,), jnp.float32),
            *(tiles(dtype) for _ in range(5)),
            tiles(dtype, 2),
            *_levels_memory(dtype, 1),
            plgpu.Barrier(num_arrivals=4 + 3 * V // TILE + 2),
        ),
        grid=(B, H, K // TILE),
        grid_names=("batch", "head", "tile"),
    )(q, k, v, do, *gates, _states(k, v, gates, state), for_one_head_of_each_group(gradients[1], groups))
    dsums = lax.cumsum(dsums.reshape(B, -1, CHUNK, H, K), axis=2, reverse=True) + left.swapaxes(1, 2)[:, :, None]
    dk, dv, dlog_decay = (of_key_heads(x, groups)[:, :L] for x in (dk, dv.sum(axis=0), dsums.reshape(B, padded, H, K)))
    dstate = dstate.reshape(B, -1, groups, K, V).sum(axis=2)
    return dq[:, :L], dk.astype(k.dtype), dv.astype(v.dtype), dlog_decay, None, dstate


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, high_ref, low_ref, rows_ref, keep_ref, states_ref, dfinal_ref, *refs):
    dq_ref, dk_ref, dv_ref, dsums_ref, left_ref, dfirst_ref, q, k, v, do, states, dstates_, *refs = refs
    high, low, of_steps, keep, near, dnear, dnear_turned, out, second_out, dlevel, patterns, x, full = refs
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, value_tiles, dtype = q_ref.shape[1] // CHUNK, v.shape[0], q.dtype

    def fetch(chunk):
        at = batch, steps_of(chunk)
        for ref, smem, of in ((q_ref, q, head), (k_ref, k, key_head), (high_ref, high, key_head)):
            plgpu.copy_gmem_to_smem(ref.at[*at, of, channels(tile)], smem.at[0], full)
        plgpu.copy_gmem_to_smem(low_ref.at[*at, key_head, channels(tile)], low.at[0], full)
        for part in range(value_tiles):
            plgpu.copy_gmem_to_smem(v_ref.at[*at, key_head, channels(part)], v.at[part], full)
            plgpu.copy_gmem_to_smem(do_ref.at[*at, head, channels(part)], do.at[part], full)
            source = states_ref.at[batch, key_head, chunk, channels(tile), channels(part)]
            plgpu.copy_gmem_to_smem(source, states.at[part], full)
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, chunk], of_steps, full)
        plgpu.copy_gmem_to_smem(keep_ref.at[batch, key_head, chunk, channels(tile)], keep, full)

    def advance(step, dstates):
        chunk = chunks - 1 - step
        fetch(chunk)
        plgpu.barrier_wait(full)
        levels = _Levels(q, k, high, low, of_steps, patterns, x)
        for part, dstate in enumerate(dstates):
            dstates_[part] = dstate.astype(dtype)
        levels.begin()  # commits
        dscores = product(*((do.at[i], turned(v.at[i])) for i in range(value_tiles)))
        dnear[...] = dscores.astype(dtype)
        own = along_rows(jnp.where(index(0) == index(1), dscores, 0.0).sum(axis=1))
        dnear_turned[...] = product(*((v.at[i], turned(do.at[i])) for i in range(value_tiles))).astype(dtype)

        def add_level(level, sums):
            dq, dk, scores = sums
            decay, slot = levels.store(level), lax.rem(level, 2)
            pairs = jnp.where(levels.pairs(level), matrix(dnear), 0.0)
            pairs += jnp.where(levels.pairs(level, turned=True), matrix(dnear_turned), 0.0)
            dlevel[slot] = pairs.astype(dtype)
            plgpu.commit_smem()
            dx = decay * product((dlevel.at[slot], x.at[slot, 0]))
            scores += levels.scores(level)
            return dq + jnp.where(later(level), dx, 0.0), dk + jnp.where(later(level), 0.0, dx), scores

        sums = own * matrix(k.at[0]), own * matrix(q.at[0]), levels.own_scores()
        dq, dk, scores = lax.fori_loop(0, LEVELS, add_level, sums)
        near[...] = scores.astype(dtype)
        own_q, own_k = matrix(q.at[0]), matrix(k.at[0])
        into, leaving = levels.store_into_and_out()
        plgpu.commit_smem()
        dq += into * product(*((do.at[i], turned(states.at[i])) for i in range(value_tiles)))
        dk += leaving * product(*((v.at[i], turned(dstates_.at[i])) for i in range(value_tiles)))
        dsums_ref[batch, steps_of(chunk), head, channels(tile)] = own_q * dq - own_k * dk
        plgpu.wait_smem_to_gmem(0)
        out[...], second_out[...] = dq.astype(dtype), dk.astype(dtype)
        kept, new_dstates, left = rows(keep), [], []
        for part, dstate in enumerate(dstates):
            dv = product((turned(near), do.at[part]), (k.at[0], dstates_.at[part]))
            dv_ref[tile, batch, steps_of(chunk), head, channels(part)] = dv
            after = kept * matrix(states.at[part]) + product((turned(k.at[0]), v.at[part]))
            left.append((after * dstate).sum(axis=1))
            new_dstates.append(kept * dstate + product((turned(q.at[0]), do.at[part])))
        left_ref[batch, head, chunk, channels(tile)] = sum(left[1:], start=left[0])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, dq_ref.at[batch, steps_of(chunk), head, channels(tile)])
        plgpu.copy_smem_to_gmem(second_out, dk_ref.at[batch, steps_of(chunk), head, channels(tile)])
        return tuple(new_dstates)

    dstates = tuple(from_global(dfinal_ref.at[batch, head, channels(tile), channels(i)]) for i in range(value_tiles))
    dstates = lax.fori_loop(0, chunks, advance, dstates)
    for part, dstate in enumerate(dstates):
        dfirst_ref[batch, head, channels(tile), channels(part)] = dstate
    plgpu.wait_smem_to_gmem(0)


def _states(k, v, gates, state) -> Float[Array, "B J N K V"]:
    """Return the state before every chunk, in the dtype of the products it enters."""
    B, L, J, K = k.shape
    V = v.shape[3]
    return kernel(
        _states_kernel,
        "linear_attention_states",
        out_type=(jax.ShapeDtypeStruct((B, J, L // CHUNK, K, V), k.dtype),),
        scratch_types=(
            *(tiles(k.dtype) for _ in range(3)),
            *(tiles(jnp.bfloat16) for _ in range(3)),
            plgpu.SMEM((3, CHUNK), jnp.float32),
            plgpu.SMEM((TILE,), jnp.float32),
            plgpu.Barrier(num_arrivals=6),
        ),
        grid=(B, J, K // TILE, V // TILE),
        grid_names=("batch", "head", "key_tile", "value_tile"),
    )(k, v, *gates, state)[0]


def _states_kernel(k_ref, v_ref, high_ref, low_ref, rows_ref, keep_ref, first_ref, states_ref, *scratch):
    k, v, out, high, low, pattern, of_steps, keep, full = scratch
    batch, head, key_tile, value_tile = (lax.axis_index(n) for n in ("batch", "head", "key_tile", "value_tile"))

    def advance(chunk, state):
        at = batch, steps_of(chunk), head
        for ref, smem, tile in ((k_ref, k, key_tile), (v_ref, v, value_tile)):
            plgpu.copy_gmem_to_smem(ref.at[*at, channels(tile)], smem, full)
        for ref, smem in ((high_ref, high), (low_ref, low)):
            plgpu.copy_gmem_to_smem(ref.at[*at, channels(key_tile)], smem, full)
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, chunk], of_steps, full)
        plgpu.copy_gmem_to_smem(keep_ref.at[batch, head, chunk, channels(key_tile)], keep, full)
        plgpu.wait_smem_to_gmem(0)
        out[...] = state.astype(out.dtype)
        plgpu.barrier_wait(full)
        leaving = jnp.exp(product((pattern, high), (pattern, low))) * rows(of_steps.at[LASTS])
        k[...] = (matrix(k) * leaving).astype(k.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, states_ref.at[batch, head, chunk, channels(key_tile), channels(value_tile)])
        state = rows(keep) * state + product((turned(k), v))
        plgpu.commit_smem()  # all threads are done with the inputs
        return state

    pattern[...] = _pattern(LEVELS)
    plgpu.commit_smem()
    first = from_global(first_ref.at[batch, head, channels(key_tile), channels(value_tile)])
    lax.fori_loop(0, k_ref.shape[1] // CHUNK, advance, first)
    plgpu.wait_smem_to_gmem(0)


class _Levels:
    """Scores and decays of one chunk and some tiles of key channels, level by level.

    There is shared memory for two levels: while products read one, the next is stored.
    """

    def __init__(self, q, k, high, low, of_steps, patterns, x):
        self.q, self.k, self.high, self.low = q, k, high, low  # [tiles, C, 64]
        self.of_steps, self.patterns, self.x = of_steps, patterns, x
        self.parts = range(q.shape[0])

    def begin(self) -> None:
        """Store the pattern of the first level."""
        self.patterns[0] = _pattern(0)
        plgpu.commit_smem()

    def own_scores(self) -> Float[Array, "C C"]:
        """Return the score of every step with itself."""
        first, *others = [(matrix(self.q.at[part]) * matrix(self.k.at[part])).sum(axis=1) for part in self.parts]
        return jnp.where(index(0) == index(1), along_rows(sum(others, start=first)), 0.0)

    def _decay(self, slot: int | Array, part: int) -> Float[Array, "C 64"]:
        pattern = self.patterns.at[slot]
        return jnp.exp(product((pattern, self.high.at[part]), (pattern, self.low.at[part])))

    def store(self, level) -> Array:
        """Store a level's x and the pattern of the next level; return the decay of the last tile."""
        slot = lax.rem(level, 2)
        for part in self.parts:
            decay = self._decay(slot, part)
            x = jnp.where(later(level), matrix(self.q.at[part]), matrix(self.k.at[part])) * decay
            self.x[slot, part] = x.astype(self.x.dtype)
        self.patterns[1 - slot] = _pattern(level + 1)
        return decay

    def pairs(self, level, *, turned: bool = False) -> Bool[Array, "C C"]:
        """Return which pairs of a later and an earlier step of a run belong to a level."""
        same_run = rows(self.of_steps.at[RUNS]) == columns(self.of_steps.at[RUNS])
        return pairs_of(level, turned=turned) & same_run

    def scores(self, level) -> Float[Array, "C C"]:
        x = [self.x.at[lax.rem(level, 2), part] for part in self.parts]
        return jnp.where(self.pairs(level), product(*((one, turned(one)) for one in x)), 0.0)

    def store_into_and_out(self) -> tuple[Array, Array]:
        """Decay queries from the chunk's start and keys to its end, in place; return the decays of the last tile."""
        alive, lasts = (rows(self.of_steps.at[row]) for row in (ALIVE, LASTS))
        self.patterns[1] = _up_to_each_step()
        outs = [self._decay(0, part) * lasts for part in self.parts]
        plgpu.commit_smem()
        intos = [self._decay(1, part) * alive for part in self.parts]
        for part in self.parts:
            self.q[part] = (matrix(self.q.at[part]) * intos[part]).astype(self.q.dtype)
            self.k[part] = (matrix(self.k.at[part]) * outs[part]).astype(self.k.dtype)
        return intos[-1], outs[-1]


def _pattern(level) -> Float[Array, "C C"]:
    """Return which log-decays lie between each step and the middle of its block; at level 6, up to the chunk's end."""
    half, step, other = lax.shift_left(1, level), index(0), index(1)
    middle = (step & -(2 * half)) + half
    after, before = (other >= middle) & (other <= step), (other > step) & (other < middle)
    return _as_numbers((later(level) & after) | before)


def _up_to_each_step() -> Float[Array, "C C"]:
    """Return which log-decays lie between the chunk's start and each step."""
    return _as_numbers(index(1) <= index(0))


def _as_numbers(x: Bool[Array, "C C"]) -> Float[Array, "C C"]:
    return jnp.where(x, 1.0, 0.0).astype(jnp.bfloat16)


def _levels_memory(dtype: jnp.dtype, parts: int) -> tuple:
    return tiles(jnp.bfloat16, 2), tiles(dtype, 2, parts)


def _gates(log_decay: Float[Array, "B L J K"], runs: Int[Array, "B L"]) -> tuple[Array, Array, Array, Array]:
    """Return the high and low part of log-decays, rows [B N 3 C], and what a state keeps of each channel [B J N K]."""
    padded = whole_chunks(log_decay)
    high = lax.reduce_precision(padded, exponent_bits=8, mantissa_bits=7)
    runs_NBC, alive, lasts = split_runs(runs, CHUNK)
    of_steps = jnp.stack([x.astype(jnp.float32) for x in (runs_NBC, alive, lasts)], axis=2).swapaxes(0, 1)
    total = split(padded, CHUNK).sum(axis=2)  # [N, B, J, K]
    keep = jnp.where(alive[:, :, -1, None, None], jnp.exp(total), 0.0).transpose(1, 2, 0, 3)
    return high.astype(jnp.bfloat16), (padded - high).astype(jnp.bfloat16), of_steps, keep
