"""Linear attention with a scalar decay in Mosaic GPU for Hopper: the state stays in registers along a sequence.

A block has one warpgroup. Forward, it takes a head and 64 value channels, and its state is K x 64; backward, a head and
64 key channels, last chunk first, and the gradient of its state is 64 x V. Chunks of 64 steps come through two slots of
shared memory, the next one while this one is worked on. Weights of the decay are computed outside, as on TPU
(tpu_decay.ScalarDecay), and so is the sum of what blocks of different key channels give values and log-decays.

bfloat16 and float16 only, as Hopper's matrix products. Gates of key channels are left out: they go through xla.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from jaxtrain_kernels.linear_attention.tpu_decay import ScalarDecay

CHUNK = TILE = 64
BY_STEP, BY_EARLIER_STEP = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # of a matrix's rows, its columns
SLOTS = 2
# The search for layouts of the other semantics does not end here; every load below names its own.
LANES = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)


def refuses(q: Float[Array, "B L H K"], k: Array, v: Array, log_decay: Array | None) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    reasons = [] if q.dtype in (jnp.bfloat16, jnp.float16) else [f"q, k and v are {q.dtype}, not bfloat16 or float16"]
    for name, width in {"key": q.shape[3], "value": v.shape[3]}.items():
        if width not in (64, 128):
            reasons.append(f"the {name} dim is {width}, not 64 or 128")
    if log_decay is not None and log_decay.ndim == 4:
        reasons.append("there is a gate for every key channel")
    return reasons


def forward(q, k, v, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py, chunks always of 64."""
    L, V = q.shape[1], v.shape[3]
    (rows,), (q, k, v) = ScalarDecay.gates(log_decay, runs, CHUNK), map(_whole_chunks, (q, k, v))
    B, _, H, K = q.shape
    output, final = plgpu.kernel(
        _forward_kernel,
        out_type=(
            jax.ShapeDtypeStruct((*q.shape[:3], V), v.dtype),
            jax.ShapeDtypeStruct((B, H, K, V), jnp.float32),
        ),
        scratch_types=(
            _tiles(q.dtype, SLOTS, K // TILE),
            _tiles(q.dtype, SLOTS, K // TILE),
            _tiles(q.dtype, SLOTS),
            plgpu.SMEM((SLOTS, 5, CHUNK), jnp.float32),
            *(_tiles(q.dtype) for _ in range(3)),
            _tiles(q.dtype, K // TILE),
            plgpu.Barrier(num_arrivals=2 * K // TILE + 2, num_barriers=SLOTS),
        ),
        grid=(B, H, V // TILE),
        grid_names=("batch", "head", "tile"),
        kernel_name="linear_attention_forward",
        compiler_params=LANES,
    )(q, k, v, rows, state)
    return output[:, :L], final[:, :: H // k.shape[2]]


def _forward_kernel(q_ref, k_ref, v_ref, rows_ref, first_ref, o_ref, final_ref, *scratch):
    q, k, v, rows, weighted, near, out, tiles, full = scratch
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, key_tiles, dtype = q_ref.shape[1] // CHUNK, tiles.shape[0], q.dtype
    channels = pl.ds(tile * TILE, TILE)

    def fetch(chunk, slot):
        steps = pl.ds(chunk * CHUNK, CHUNK)
        for part in range(key_tiles):
            of_part = pl.ds(part * TILE, TILE)
            plgpu.copy_gmem_to_smem(q_ref.at[batch, steps, head, of_part], q.at[slot, part], full.at[slot])
            plgpu.copy_gmem_to_smem(k_ref.at[batch, steps, key_head, of_part], k.at[slot, part], full.at[slot])
        plgpu.copy_gmem_to_smem(v_ref.at[batch, steps, key_head, channels], v.at[slot], full.at[slot])
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, key_head, chunk], rows.at[slot], full.at[slot])

    def advance(chunk, states):
        slot = lax.rem(chunk, SLOTS)
        plgpu.barrier_wait(full.at[slot])
        decay = _Decay(rows.at[slot])
        for part, state in enumerate(states):
            tiles[part] = state.astype(dtype)
        v_out = plgpu.load(v.at[slot], layout=plgpu.Layout.WGMMA).astype(jnp.float32)
        weighted[...] = (v_out * _along_rows(decay.out, v_out.shape)).astype(dtype)
        plgpu.commit_smem()
        scores = _product(*((q.at[slot, part], k.at[slot, part].transpose((1, 0))) for part in range(key_tiles)))
        from_state = _product(*((q.at[slot, part], tiles.at[part]) for part in range(key_tiles)))
        near[...] = (scores * decay.pairs()).astype(dtype)
        plgpu.commit_smem()
        output = from_state * _along_rows(decay.into, from_state.shape) + _product((near, v.at[slot]))
        states = [
            state * decay.keep + _product((k.at[slot, part].transpose((1, 0)), weighted))
            for part, state in enumerate(states)
        ]
        plgpu.wait_smem_to_gmem(0)
        out[...] = output.astype(dtype)
        plgpu.commit_smem()  # also: all threads are done with this slot
        plgpu.copy_smem_to_gmem(out, o_ref.at[batch, pl.ds(chunk * CHUNK, CHUNK), head, channels])
        pl.when(chunk + SLOTS < chunks)(lambda: fetch(chunk + SLOTS, slot))
        return tuple(states)

    for chunk in range(min(SLOTS, chunks)):
        fetch(chunk, chunk)
    states = tuple(_load(first_ref.at[batch, key_head, pl.ds(i * TILE, TILE), channels]) for i in range(key_tiles))
    states = lax.fori_loop(0, chunks, advance, states)
    for part, state in enumerate(states):
        final_ref[batch, head, pl.ds(part * TILE, TILE), channels] = state
    plgpu.wait_smem_to_gmem(0)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, log_decay, runs, state = residuals
    L, groups = q.shape[1], q.shape[2] // k.shape[2]
    (rows,), (q, k, v, do) = ScalarDecay.gates(log_decay, runs, CHUNK), map(_whole_chunks, (q, k, v, gradients[0]))
    first = (jnp.arange(q.shape[2]) % groups == 0)[None, :, None, None]  # hands the gradient of the final state on
    dfinal = jnp.where(first, jnp.repeat(gradients[1], groups, axis=1), 0)
    (B, padded, H, K), V = q.shape, v.shape[3]
    of_values = jax.ShapeDtypeStruct((K // TILE, B, padded, H, V), jnp.float32)
    of_weights = jax.ShapeDtypeStruct((K // TILE, B, H, padded // CHUNK, 2, CHUNK), jnp.float32)
    like = jax.ShapeDtypeStruct(q.shape, q.dtype)
    dq, dk, dv, dweights, dstate = plgpu.kernel(
        _backward_kernel,
        out_type=(like, like, of_values, of_weights, jax.ShapeDtypeStruct((B, H, K, V), jnp.float32)),
        scratch_types=(
            *(_tiles(q.dtype, K // TILE) for _ in range(2)),
            *(_tiles(q.dtype, V // TILE) for _ in range(4)),
            plgpu.SMEM((5, CHUNK), jnp.float32),
            *(_tiles(q.dtype) for _ in range(5)),
            plgpu.Barrier(num_arrivals=(2 * K + 3 * V) // TILE + 1),
        ),
        grid=(B, H, K // TILE),
        grid_names=("batch", "head", "tile"),
        kernel_name="linear_attention_backward",
        compiler_params=LANES,
    )(q, k, v, do, rows, _states(k, v, rows, state), dfinal)

    def of_key_heads(x: Float[Array, "B L H K"]) -> Float[Array, "B L J K"]:
        return x.astype(jnp.float32).reshape(B, padded, -1, groups, x.shape[3]).sum(axis=3)[:, :L]

    dsums, leaves = jnp.moveaxis(dweights.sum(axis=0), 3, 0)  # [B, H, N, C]
    dsums = dsums.at[..., -1].add(leaves.sum(axis=-1))
    dlog_decay = lax.cumsum(dsums, axis=3, reverse=True).reshape(B, H, padded, 1).swapaxes(1, 2)
    dk, dv, dlog_decay = of_key_heads(dk).astype(k.dtype), of_key_heads(dv.sum(axis=0)), of_key_heads(dlog_decay)
    dstate = dstate.reshape(B, -1, groups, K, V).sum(axis=2)
    return dq[:, :L], dk, dv.astype(v.dtype), dlog_decay, None, dstate


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, rows_ref, states_ref, dfinal_ref, *refs):
    dq_ref, dk_ref, dv_ref, dweights_ref, dfirst_ref, q, k, v, do, states, dtiles, rows, *tiles, full = refs
    near, dnear, weighted, out, second_out = tiles
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    key_head = lax.div(head, q_ref.shape[2] // k_ref.shape[2])
    chunks, key_tiles, value_tiles, dtype = q_ref.shape[1] // CHUNK, q.shape[0], v.shape[0], q.dtype
    channels = pl.ds(tile * TILE, TILE)

    def fetch(chunk):
        steps = pl.ds(chunk * CHUNK, CHUNK)
        for part in range(key_tiles):
            of_part = pl.ds(part * TILE, TILE)
            plgpu.copy_gmem_to_smem(q_ref.at[batch, steps, head, of_part], q.at[part], full)
            plgpu.copy_gmem_to_smem(k_ref.at[batch, steps, key_head, of_part], k.at[part], full)
        for part in range(value_tiles):
            of_part = pl.ds(part * TILE, TILE)
            plgpu.copy_gmem_to_smem(v_ref.at[batch, steps, key_head, of_part], v.at[part], full)
            plgpu.copy_gmem_to_smem(do_ref.at[batch, steps, head, of_part], do.at[part], full)
            plgpu.copy_gmem_to_smem(states_ref.at[batch, key_head, chunk, channels, of_part], states.at[part], full)
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, key_head, chunk], rows, full)

    def advance(step, dstates):
        chunk = chunks - 1 - step
        steps = pl.ds(chunk * CHUNK, CHUNK)
        fetch(chunk)
        plgpu.barrier_wait(full)
        decay, shape = _Decay(rows), (CHUNK, TILE)
        for part, dstate in enumerate(dstates):
            dtiles[part] = dstate.astype(dtype)
        own_q = plgpu.load(q.at[tile], layout=plgpu.Layout.WGMMA).astype(jnp.float32)
        own_k = plgpu.load(k.at[tile], layout=plgpu.Layout.WGMMA).astype(jnp.float32)
        weighted[...] = (own_q * _along_rows(decay.into, shape)).astype(dtype)
        plgpu.commit_smem()
        # The part of dv that all key channels share is counted by the first block.
        pairs, counted = decay.pairs(), jnp.where(tile == 0, 1.0, 0.0)
        scores = _product(*((q.at[i], k.at[i].transpose((1, 0))) for i in range(key_tiles)))
        near[...] = (scores * pairs * counted).astype(dtype)
        dscores = _product(*((do.at[i], v.at[i].transpose((1, 0))) for i in range(value_tiles)))
        dnear[...] = (dscores * pairs).astype(dtype)
        plgpu.commit_smem()
        into, leaving = _along_rows(decay.into, shape), _along_rows(decay.out, shape)
        dq = _product((dnear, k.at[tile]))
        dq += into * _product(*((do.at[i], states.at[i].transpose((1, 0))) for i in range(value_tiles)))
        dk_out = leaving * _product(*((v.at[i], dtiles.at[i].transpose((1, 0))) for i in range(value_tiles)))
        dk = _product((dnear.transpose((1, 0)), q.at[tile])) + dk_out
        left = (own_k * dk_out).sum(axis=1)
        new_dstates = []
        for part, dstate in enumerate(dstates):
            dv = _product((near.transpose((1, 0)), do.at[part])) + leaving * _product((k.at[tile], dtiles.at[part]))
            dv_ref[tile, batch, steps, head, pl.ds(part * TILE, TILE)] = dv
            before = plgpu.load(states.at[part], layout=plgpu.Layout.WGMMA).astype(jnp.float32)
            left += decay.keep * (before * dstate).sum(axis=1)
            new_dstates.append(decay.keep * dstate + _product((weighted.transpose((1, 0)), do.at[part])))
        dweights_ref[tile, batch, head, chunk, 0] = (own_q * dq - own_k * dk).sum(axis=1)
        dweights_ref[tile, batch, head, chunk, 1] = left
        plgpu.wait_smem_to_gmem(0)
        out[...], second_out[...] = dq.astype(dtype), dk.astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, dq_ref.at[batch, steps, head, channels])
        plgpu.copy_smem_to_gmem(second_out, dk_ref.at[batch, steps, head, channels])
        return tuple(new_dstates)

    parts = [pl.ds(i * TILE, TILE) for i in range(value_tiles)]
    dstates = tuple(_load(dfinal_ref.at[batch, head, channels, part]) for part in parts)
    dstates = lax.fori_loop(0, chunks, advance, dstates)
    for part, dstate in zip(parts, dstates, strict=True):
        dfirst_ref[batch, head, channels, part] = dstate
    plgpu.wait_smem_to_gmem(0)


def _states(k, v, rows, state) -> Float[Array, "B J N K V"]:
    """Return the state before every chunk, in the dtype of the products it enters."""
    B, L, J, K = k.shape
    V = v.shape[3]
    return plgpu.kernel(
        _states_kernel,
        out_type=jax.ShapeDtypeStruct((B, J, L // CHUNK, K, V), k.dtype),
        scratch_types=(
            *(_tiles(k.dtype) for _ in range(4)),
            plgpu.SMEM((5, CHUNK), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
        ),
        grid=(B, J, K // TILE, V // TILE),
        grid_names=("batch", "head", "key_tile", "value_tile"),
        kernel_name="linear_attention_states",
        compiler_params=LANES,
    )(k, v, rows, state)


def _states_kernel(k_ref, v_ref, rows_ref, first_ref, states_ref, k, v, weighted, out, rows, full):
    batch, head, key_tile, value_tile = (lax.axis_index(n) for n in ("batch", "head", "key_tile", "value_tile"))
    keys, values = pl.ds(key_tile * TILE, TILE), pl.ds(value_tile * TILE, TILE)

    def advance(chunk, state):
        steps = pl.ds(chunk * CHUNK, CHUNK)
        plgpu.copy_gmem_to_smem(k_ref.at[batch, steps, head, keys], k, full)
        plgpu.copy_gmem_to_smem(v_ref.at[batch, steps, head, values], v, full)
        plgpu.copy_gmem_to_smem(rows_ref.at[batch, head, chunk], rows, full)
        plgpu.wait_smem_to_gmem(0)
        out[...] = state.astype(out.dtype)
        plgpu.barrier_wait(full)
        decay = _Decay(rows)
        leaving = plgpu.load(v, layout=plgpu.Layout.WGMMA).astype(jnp.float32) * _along_rows(decay.out, v.shape)
        weighted[...] = leaving.astype(weighted.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out, states_ref.at[batch, head, chunk, keys, values])
        state = decay.keep * state + _product((k.transpose((1, 0)), weighted))
        plgpu.commit_smem()  # all threads are done with the inputs
        return state

    lax.fori_loop(0, k_ref.shape[1] // CHUNK, advance, _load(first_ref.at[batch, head, keys, values]))
    plgpu.wait_smem_to_gmem(0)


class _Decay:
    """The weights of a chunk, from the rows that ScalarDecay lays out, in registers."""

    def __init__(self, rows):
        self.rows = rows
        self.into, self.out = (plgpu.load(rows.at[i], layout=BY_STEP) for i in (2, 3))
        self.keep = rows[2, CHUNK - 1]

    def pairs(self) -> Float[Array, "C C"]:
        """Return what each step keeps of each earlier one of its run."""
        shape = (CHUNK, CHUNK)
        coarse, fine, run = (
            (_along_rows(plgpu.load(self.rows.at[i], layout=BY_STEP), shape), self._along_columns(i)) for i in (0, 1, 4)
        )
        later, earlier = (plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1))
        exponent = (coarse[0] - coarse[1]) + (fine[0] - fine[1])
        return jnp.exp(jnp.where((run[0] == run[1]) & (later >= earlier), exponent, -jnp.inf))

    def _along_columns(self, row: int) -> Float[Array, "C C"]:
        return lax.broadcast_in_dim(plgpu.load(self.rows.at[row], layout=BY_EARLIER_STEP), (CHUNK, CHUNK), [1])


def _along_rows(x: Float[Array, "C"], shape: tuple[int, int]) -> Array:
    return lax.broadcast_in_dim(x, shape, [0])


def _product(*pairs) -> Array:
    """Return the float32 sum of matrix products."""
    shape = (pairs[0][0].shape[0], pairs[0][1].shape[1])

    def accumulate(acc):
        for a, b in pairs:
            plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))


def _load(ref) -> Array:
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)


def _tiles(dtype: jnp.dtype, *leading: int):
    transforms = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((*leading, CHUNK, TILE), dtype, transforms=transforms)


def _whole_chunks(x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), (0, 0), (0, 0)))
