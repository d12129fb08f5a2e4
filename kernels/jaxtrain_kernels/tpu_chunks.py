"""What the recurrent kernels for TPU share: blocks of a grid (batch, heads, chunks), and the state in scratch memory.

Chunks run one after another, from the first to the last or, with `reverse`, from the last to the first. States are
transposed, [V, K].
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

ROWS_OF_SUM = 32  # of float32, in one product


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Return the float32 product of matrices over one axis of each, at full precision for float32 operands.

    Float32 sums over the rows of both, which are steps, begin with the last rows: later queries have the smallest
    terms, and sums that begin with the largest terms lose digits.
    """
    if a.dtype != jnp.float32 or contract != (0, 0):
        return _dot(a, b, contract)
    starts = reversed(range(0, a.shape[0], ROWS_OF_SUM))
    last, *earlier = (_dot(a[at : at + ROWS_OF_SUM], b[at : at + ROWS_OF_SUM], contract) for at in starts)
    return sum(earlier, last)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def begin(scratch, ref) -> None:
    """Load the state into scratch memory, at the first step of the grid along chunks."""

    @pl.when(pl.program_id(2) == 0)
    def _():
        scratch[...] = ref[...]


def end(scratch, ref) -> None:
    """Write the state from scratch memory, at the last step of the grid along chunks."""

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        ref[...] = scratch[...]


def call(kernel, name: str, *, inputs, in_specs, outputs, chunk: int) -> list[Array]:
    """Run a kernel over (batch, heads, chunks). `outputs` are (array, block); the last of `inputs` is a state."""
    B, H, L, _ = inputs[0].shape
    K, V = inputs[-1].shape[-1], inputs[-1].shape[-2]
    kind = jax.typeof(inputs[0]).manual_axis_type  # of all, see varying.alike
    return pl.pallas_call(
        kernel,
        name=name,
        grid=(B, H, L // chunk),
        in_specs=in_specs,
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind) for x, _ in outputs],
        scratch_shapes=[pltpu.VMEM((V, K), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    )(*inputs)


def steps_of(x: Float[Array, "B L H K"], chunk: int) -> Float[Array, "B H padded K"]:
    """Return the sequences with heads first, padded with zeros to whole chunks."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % chunk), (0, 0)))


def in_order(x: Float[Array, "B H L K"], chunk: int, *, reverse: bool = False):
    """Return a function from an array to its block along the steps, and one from the grid's index to its chunk."""
    N = x.shape[2] // chunk

    def at(n):
        return N - 1 - n if reverse else n

    return lambda x: pl.BlockSpec((None, None, chunk, x.shape[3]), lambda b, h, n: (b, h, at(n), 0)), at


def of_chunks(states: Float[Array, "B H N V K"] | jax.ShapeDtypeStruct, at) -> pl.BlockSpec:
    """Return the block of an array with one state a chunk."""
    return pl.BlockSpec((None, None, None, *states.shape[3:]), lambda b, h, n: (b, h, at(n), 0, 0))


def whole(state: Float[Array, "B H V K"]) -> pl.BlockSpec:
    """Return the block of an array with one state a sequence."""
    return pl.BlockSpec((None, None, *state.shape[2:]), lambda b, h, n: (b, h, 0, 0))


def of_key_heads(x: Float[Array, "B H ..."], groups: int) -> Float[Array, "B J ..."]:
    """Return the sum of the gradients that the query heads of a group have for their key head."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(axis=2)


def for_one_head_of_each_group(dstate: Float[Array, "B J K V"], groups: int) -> Float[Array, "B H V K"]:
    """Return the gradient of the final states by query head: that of the key head for the first head of its group."""
    first = (jnp.arange(dstate.shape[1] * groups) % groups == 0)[None, :, None, None]
    return jnp.where(first, jnp.repeat(dstate, groups, axis=1), 0).swapaxes(2, 3)
