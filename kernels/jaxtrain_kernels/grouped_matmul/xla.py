"""Plain XLA: a scan over groups, and in it a loop over blocks of the group's rows.

The loop has as many rounds as the group has blocks, so an empty group costs no product. Shapes are static: the last
block of a group reaches into the rows of the next one. Forward these rows are overwritten when their own group's turn
comes; in the gradient of the weights they are masked. `jax.lax.ragged_dot` is a dense product over all groups on CPUs
and GPUs: it multiplies every row with every matrix.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.chunks import accumulator
from jaxtrain_kernels.grouped_matmul.groups import Weights, bounds, matrices, without_rest
from jaxtrain_kernels.varying import vary, varying

LEAST, MOST = 16, 512  # rows of a block


def product(x: Float[Array, "T K"], weights: Weights, sizes: Int[Array, " G"], *, transposed: bool):
    """Return the products [T, F]; with `transposed`, of [T, F] with the transposed matrices."""
    (T, _), (_, D, F) = x.shape, weights.shape
    block = _block(T, len(sizes))
    whole, groups = _with_room(x, block), bounds(sizes, T)
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))

    def of_group(y, group):
        own, start, end = group
        matrix = matrices(own, x.dtype)

        def of_block(index, y):
            first = start + index * block
            rows = lax.dynamic_slice_in_dim(whole, first, block)
            products = lax.dot_general(rows, matrix, dimensions, preferred_element_type=accumulator(x.dtype))
            return lax.dynamic_update_slice_in_dim(y, products.astype(x.dtype), first, axis=0)

        return lax.fori_loop(0, _blocks(start, end, block), of_block, y), None

    y, _ = lax.scan(of_group, _zeros((T + block, D if transposed else F), x.dtype, x), (weights, *groups))
    return without_rest(y[:T], groups.ends)


def outer(x: Float[Array, "T D"], dy: Float[Array, "T F"], sizes: Int[Array, " G"]) -> Float[Array, "G D F"]:
    """Return the transposed products, summed over the blocks of a group in the accumulator's dtype."""
    block = _block(len(x), len(sizes))
    whole = _with_room(x, block), _with_room(dy, block)

    def of_group(_, group):
        start, end = group

        def add(index, total):
            first = start + index * block
            own = (first + jnp.arange(block) < end)[:, None]
            rows, gradients = (jnp.where(own, lax.dynamic_slice_in_dim(one, first, block), 0) for one in whole)
            dimensions = (((0,), (0,)), ((), ()))
            return total + lax.dot_general(rows, gradients, dimensions, preferred_element_type=total.dtype)

        total = _zeros((x.shape[1], dy.shape[1]), accumulator(x.dtype), x)
        return None, lax.fori_loop(0, _blocks(start, end, block), add, total).astype(x.dtype)

    return lax.scan(of_group, None, bounds(sizes, len(x)))[1]


def _block(rows: int, groups: int) -> int:
    """Return the rows of a block: about as many as a group has, a power of two."""
    return min(max(1 << max(rows // groups, 1).bit_length() - 1, LEAST), MOST)


def _blocks(start: Int[Array, ""], end: Int[Array, ""], block: int) -> Int[Array, ""]:
    return (end - start + block - 1) // block


def _with_room(x: Float[Array, "T D"], block: int) -> Float[Array, "T_and_more D"]:
    """Return the rows and, behind them, room for a block that begins at the last one."""
    return jnp.pad(x, ((0, block), (0, 0)))


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: jax.Array) -> Array:
    """Return zeros that vary over the same mesh axes of a shard_map: what a loop carries."""
    return vary(varying(like), jnp.zeros(shape, dtype))[0]
