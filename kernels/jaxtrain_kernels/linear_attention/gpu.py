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
            *(_tiles(q.dtype) for _ in range(2)),
            _tiles(q.dtype, K // TILE),
            plgpu.Barrier(num_arrivals=2 * K // TILE + 2, num_barriers=SLOTS),
        ),
        grid=(B, H, V // TILE),
        grid_names=("batch", "head", "tile"),
        kernel_name="linear_attention_forward",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )(q, k, v, rows, state)
    return output[:, :L], final[:, :: H // k.shape[2]]


def _forward_kernel(
    q_ref, k_ref, v_ref, rows_ref, first_ref, o_ref, final_ref, q, k, v, rows, weighted, out, tiles, full
):
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
        output = from_state * _along_rows(decay.into, from_state.shape)
        output += _product(((scores * decay.pairs()).astype(dtype), v.at[slot]))
        states = [
            state * decay.keep + _product((k.at[slot, part].transpose((1, 0)), weighted))
            for part, state in enumerate(states)
        ]
        plgpu.wait_smem_to_gmem(0)
        out[...] = output.astype(dtype)
        plgpu.commit_smem()
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
