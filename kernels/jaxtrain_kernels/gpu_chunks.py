"""What the recurrent kernels for Hopper share: chunks of 64 steps and tiles of 64 channels, one warpgroup a block.

Matrices are in shared memory in the layout that tensor cores read, [64, 64] a tile. Vectors over steps or channels are
in registers, in the layout of a matrix summed along one axis. A barrier tells when copies into shared memory are
complete. What threads store there is visible to products and copies after `commit_smem`, for which all threads of the
block wait together.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.varying import vary, varying

CHUNK = TILE = 64
SQUARE = (CHUNK, TILE)
LEVELS = 6  # of blocks of 2, 4, ..., 64 steps
BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
# With the other semantics the search for layouts does not end for these kernels; so every load names its layout.
LANES = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)
DTYPES = (jnp.bfloat16, jnp.float16)


def refuses(q: Float[Array, "B L H K"], v: Float[Array, "B L J V"]) -> list[str]:
    """Return why no recurrent kernel can take the tensors."""
    reasons = [] if q.dtype in DTYPES else [f"q, k and v are {q.dtype}, not bfloat16 or float16"]
    for name, width in {"key": q.shape[3], "value": v.shape[3]}.items():
        if width not in (64, 128):
            reasons.append(f"the {name} dim is {width}, not 64 or 128")
    return reasons


def kernel(
    body: Callable,
    name: str,
    *,
    out_type: tuple,
    scratch_types: tuple,
    grid: tuple[int, ...],
    grid_names: tuple[str, ...],
) -> Callable[..., tuple[Array, ...]]:
    """Return `body` as a kernel of one warpgroup a block: a function of arrays that returns a tuple of them."""
    run = plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        grid=grid,
        grid_names=grid_names,
        compiler_params=LANES,
        kernel_name=name,
    )
    # Inside a shard_map, kernels return arrays without its varying axes.
    return lambda *arrays: vary(varying(arrays[0]), *run(*arrays))


def whole_chunks(x: Float[Array, "B L H K"]) -> Float[Array, "B padded H K"]:
    """Return the sequences, padded with zeros to whole chunks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % CHUNK), (0, 0), (0, 0)))


def of_key_heads(x: Float[Array, "B L H K"], groups: int) -> Float[Array, "B L J K"]:
    """Return the sum of the gradients that the query heads of a group have for their key head."""
    return x.astype(jnp.float32).reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(axis=3)


def for_one_head_of_each_group(dstate: Float[Array, "B J K V"], groups: int) -> Float[Array, "B H K V"]:
    """Return the gradient of the final states by query head: that of the key head for the first head of its group."""
    first = (jnp.arange(dstate.shape[1] * groups) % groups == 0)[None, :, None, None]
    return jnp.where(first, jnp.repeat(dstate, groups, axis=1), 0)


def tiles(dtype: DTypeLike, *leading: int):
    """Return shared memory for matrices that products read."""
    # mypy takes an unimplemented method of their base class for an abstract one.
    transforms = (plgpu.TilingTransform((8, TILE)), plgpu.SwizzleTransform(128))  # type: ignore[abstract]
    return plgpu.SMEM((*leading, *SQUARE), dtype, transforms=transforms)


def channels(part) -> pl.Slice:
    return pl.ds(part * TILE, TILE)


def steps_of(chunk) -> pl.Slice:
    return pl.ds(chunk * CHUNK, CHUNK)


def turned(ref):
    """Return the transpose of a tile."""
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
    """Return a float32 tile of global memory in registers."""
    # Inside a shard_map a loaded value varies over the mesh, a computed one does not. A loop's carry needs one type
    # before and after each step, so this makes the first one a computed value.
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False) + 0.0


def rows(ref) -> Float[Array, "64 64"]:
    """Return a matrix each of whose columns is this vector of shared memory."""
    return along_rows(plgpu.load(ref, layout=BY_ROW))


def along_rows(x: Float[Array, "64"]) -> Float[Array, "64 64"]:
    """Return a matrix each of whose columns is `x`."""
    return lax.broadcast_in_dim(x, SQUARE, [0])


def columns(ref) -> Float[Array, "64 64"]:
    """Return a matrix each of whose rows is this vector of shared memory."""
    return lax.broadcast_in_dim(plgpu.load(ref, layout=BY_COLUMN), SQUARE, [1])


def index(axis: int) -> Int[Array, "64 64"]:
    """Return a matrix of each entry's index along an axis."""
    return plgpu.broadcasted_iota(jnp.int32, SQUARE, axis, layout=plgpu.Layout.WGMMA)


def later(level) -> Bool[Array, "64 64"]:
    """Return which rows are in the later half of their block of 2 << level steps."""
    return (index(0) & lax.shift_left(1, level)) != 0


def pairs_of(level, *, turned: bool = False) -> Bool[Array, "64 64"]:
    """Return which pairs of a row and an earlier column lie in the two halves of one block of 2 << level steps."""
    half = lax.shift_left(1, level)
    row, column = (index(1), index(0)) if turned else (index(0), index(1))
    return ((row & -(2 * half)) == (column & -(2 * half))) & ((row & half) != 0) & ((column & half) == 0)


class ScalarWeights:
    """The decays of a chunk in registers, from the rows of tpu_decay.ScalarDecay.gates."""

    def __init__(self, refs):
        self.refs = refs
        self.into, self.out = rows(refs.at[2]), rows(refs.at[3])
        self.keep = refs[2, CHUNK - 1]

    def pairs(self) -> Float[Array, "C C"]:
        """Return how much each step sees of each earlier one of its run."""
        (coarse, coarse_), (fine, fine_), (run, run_) = (
            (rows(self.refs.at[i]), columns(self.refs.at[i])) for i in (0, 1, 4)
        )
        seen = (run == run_) & (index(0) >= index(1))
        return jnp.exp(jnp.where(seen, (coarse - coarse_) + (fine - fine_), -jnp.inf))
