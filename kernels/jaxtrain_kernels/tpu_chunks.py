"""What the recurrent kernels for TPU share: blocks of a grid (batch, heads, chunks), and the state in scratch memory.

Chunks run one after another, first to last or, with `reverse`, last to first. States are kept transposed, [V, K].
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

ROWS_OF_SUM = 32  # of float32, in one product


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Return the float32 product of matrices over one axis of each; float32 operands are taken whole.

    Sums over the rows of both, which are steps, begin with the last rows: queries behind see least of what decays, and
    sums that begin with the largest terms lose digits.
    """
    if a.dtype != jnp.float32 or contract != (0, 0):
        return _dot(a, b, contract)
    starts = reversed(range(0, a.shape[0], ROWS_OF_SUM))
    last, *earlier = (_dot(*(x[start : start + ROWS_OF_SUM] for x in (a, b)), contract) for start in starts)
    return sum(earlier, last)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def begin(scratch, ref) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
        scratch[...] = ref[...]


def end(scratch, ref) -> None:
    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        ref[...] = scratch[...]


def call(kernel, name: str, *, inputs, in_specs, outputs, chunk: int) -> list[Array]:
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


def steps_of(x: Float[Array, "B L H K"], chunk: int) -> Float[Array, "B H L K"]:
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % chunk), (0, 0)))


def in_order(x: Float[Array, "B H L K"], chunk: int, *, reverse: bool = False):
    """Return the block of an array along the steps, and which chunk a step of the grid works on."""
    N = x.shape[2] // chunk

    def at(n):
        return N - 1 - n if reverse else n

    return lambda x: pl.BlockSpec((None, None, chunk, x.shape[3]), lambda b, h, n: (b, h, at(n), 0)), at


def of_chunks(states: Float[Array, "B H N V K"], at) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, None, *states.shape[3:]), lambda b, h, n: (b, h, at(n), 0, 0))


def whole(state: Float[Array, "B H V K"]) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, *state.shape[2:]), lambda b, h, n: (b, h, 0, 0))


def of_key_heads(x: Float[Array, "B H ..."], groups: int) -> Float[Array, "B J ..."]:
    """Sum what the query heads of a group give their key head."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(axis=2)


def for_one_head_of_each_group(dstate: Float[Array, "B J K V"], groups: int) -> Float[Array, "B H V K"]:
    """Return the gradient of the final states: the first query head of a group hands its key head's on."""
    first = (jnp.arange(dstate.shape[1] * groups) % groups == 0)[None, :, None, None]
    return jnp.where(first, jnp.repeat(dstate, groups, axis=1), 0).swapaxes(2, 3)
