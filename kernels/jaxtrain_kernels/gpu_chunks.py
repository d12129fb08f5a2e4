"""What the recurrent kernels for Hopper share: chunks of 64 steps and tiles of 64 channels, one warpgroup a block.

Matrices lie in shared memory as the tensor cores read them, [64, 64] a tile; vectors over steps or channels lie in
registers as what is left of a matrix summed along one axis. Copies into shared memory come by barriers; what threads
store there is seen by products and copies after `commit_smem`, which all threads of the block pass together.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.varying import vary, varying

CHUNK = TILE = 64
SQUARE = (CHUNK, TILE)
LEVELS = 6  # of blocks of 2, 4, ..., 64 steps
BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
# The search for layouts of the other semantics does not end here; every load names its own.
LANES = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)
DTYPES = (jnp.bfloat16, jnp.float16)


def refuses(q: Float[Array, "B L H K"], v: Float[Array, "B L J V"]) -> list[str]:
    """Return why no recurrent kernel can take the tensors."""
    reasons = [] if q.dtype in DTYPES else [f"q, k and v are {q.dtype}, not bfloat16 or float16"]
    for name, width in {"key": q.shape[3], "value": v.shape[3]}.items():
        if width not in (64, 128):
            reasons.append(f"the {name} dim is {width}, not 64 or 128")
    return reasons


def kernel(body: Callable, name: str, *, out_type: tuple, scratch_types: tuple, **grid: tuple) -> Callable:
    """Return `body` as a kernel of one warpgroup a block: a function of arrays that returns a tuple of them."""
    options = {"kernel_name": name, "compiler_params": LANES} | grid
    run = plgpu.kernel(body, out_type=out_type, scratch_types=scratch_types, **options)
    return lambda *arrays: vary(varying(arrays[0]), *run(*arrays))  # kernels know nothing of a shard_map around them


def whole_chunks(x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), (0, 0), (0, 0)))


def of_key_heads(x: Float[Array, "B L H K"], groups: int) -> Float[Array, "B L J K"]:
    """Sum what the query heads of a group give their key head."""
    return x.astype(jnp.float32).reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(axis=3)


def for_one_head_of_each_group(dstate: Float[Array, "B J K V"], groups: int) -> Float[Array, "B H K V"]:
    """Return the gradient of the final states: the first query head of a group hands its key head's on."""
    first = (jnp.arange(dstate.shape[1] * groups) % groups == 0)[None, :, None, None]
    return jnp.where(first, jnp.repeat(dstate, groups, axis=1), 0)


def tiles(dtype: jnp.dtype, *leading: int):
    """Return shared memory for matrices that products read."""
    transforms = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((*leading, *SQUARE), dtype, transforms=transforms)


def channels(part) -> pl.Slice:
    return pl.ds(part * TILE, TILE)


def steps_of(chunk) -> pl.Slice:
    return pl.ds(chunk * CHUNK, CHUNK)


def turned(ref):
    return ref.transpose((1, 0))


def product(*pairs) -> Float[Array, "64 64"]:
    """Return the float32 sum of matrix products of operands in shared memory."""

    def accumulate(acc):
        for a, b in pairs:
            plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(accumulate, plgpu.ACC(SQUARE, jnp.float32))


def matrix(ref) -> Float[Array, "64 64"]:
    """Return a tile of shared memory in registers, in float32."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA).astype(jnp.float32)


def from_global(ref) -> Float[Array, "64 64"]:
    """Return a float32 tile of the device's memory in registers."""
    # Inside a shard_map what is loaded varies over its mesh, and what is computed in a kernel does not: the same type
    # is needed before and after a step of a loop.
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False) + 0.0


def rows(ref) -> Float[Array, "64 64"]:
    """Return a vector of shared memory along the rows of a matrix: each of its columns."""
    return along_rows(plgpu.load(ref, layout=BY_ROW))


def along_rows(x: Float[Array, "64"]) -> Float[Array, "64 64"]:
    return lax.broadcast_in_dim(x, SQUARE, [0])


def columns(ref) -> Float[Array, "64 64"]:
    """Return a vector of shared memory along the columns of a matrix: each of its rows."""
    return lax.broadcast_in_dim(plgpu.load(ref, layout=BY_COLUMN), SQUARE, [1])


def index(axis: int) -> Int[Array, "64 64"]:
    return plgpu.broadcasted_iota(jnp.int32, SQUARE, axis, layout=plgpu.Layout.WGMMA)


def later(level) -> Bool[Array, "64 64"]:
    """Return which rows are in the later half of their block of 2 << level."""
    return (index(0) & lax.shift_left(1, level)) != 0


def pairs_of(level, *, turned: bool = False) -> Bool[Array, "64 64"]:
    """Return which pairs of a row and an earlier column lie in the two halves of one block of 2 << level."""
    half = lax.shift_left(1, level)
    row, column = (index(1), index(0)) if turned else (index(0), index(1))
    return ((row & -(2 * half)) == (column & -(2 * half))) & ((row & half) != 0) & ((column & half) == 0)


class ScalarWeights:
    """The weights of a chunk, from the rows that tpu_decay.ScalarDecay lays out, in registers."""

    def __init__(self, refs):
        self.refs = refs
        self.into, self.out = rows(refs.at[2]), rows(refs.at[3])
        self.keep = refs[2, CHUNK - 1]

    def pairs(self) -> Float[Array, "C C"]:
        """Return what each step keeps of each earlier one of its run."""
        (coarse, coarse_), (fine, fine_), (run, run_) = (
            (rows(self.refs.at[i]), columns(self.refs.at[i])) for i in (0, 1, 4)
        )
        seen = (run == run_) & (index(0) >= index(1))
        return jnp.exp(jnp.where(seen, (coarse - coarse_) + (fine - fine_), -jnp.inf))
