"""Plain XLA: a scan over groups, and in it a loop over blocks of the group's rows.

The loop has as many rounds as the group has blocks, so an empty group costs no product. Shapes are static: the last
block of a group reaches into rows of others, which are masked. `jax.lax.ragged_dot` is a dense product over all groups
on CPUs and GPUs: it multiplies every row with every matrix.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.chunks import accumulator
from jaxtrain_kernels.grouped_matmul.groups import Weights, bounds, matrices
from jaxtrain_kernels.varying import vary, varying

LEAST, MOST = 16, 128  # rows of a block (docs/log.md)


def product(x: Float[Array, "T K"], weights: Weights, sizes: Int[Array, " G"], *, transposed: bool):
    """Return the products [T, F]; with `transposed`, of [T, F] with the transposed matrices."""
    (T, _), (_, D, F) = x.shape, weights.shape
    block = _block(T, len(sizes))
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))

    def of_group(y, group):
        own, start, end = group
        matrix = matrices(own, x.dtype)

        def of_block(index, y):
            at, is_own = _rows(start, end, index, block, T)
            rows, others = (lax.dynamic_slice_in_dim(one, at, block) for one in (x, y))
            products = lax.dot_general(rows, matrix, dimensions, preferred_element_type=accumulator(x.dtype))
            return lax.dynamic_update_slice_in_dim(y, jnp.where(is_own, products.astype(x.dtype), others), at, axis=0)

        return lax.fori_loop(0, _blocks(start, end, block), of_block, y), None

    return lax.scan(of_group, _zeros((T, D if transposed else F), x.dtype, x), (weights, *bounds(sizes, T)))[0]


def outer(x: Float[Array, "T D"], dy: Float[Array, "T F"], sizes: Int[Array, " G"]) -> Float[Array, "G D F"]:
    """Return the transposed products, summed over the blocks of a group in the accumulator's dtype."""
    block = _block(len(x), len(sizes))

    def of_group(_, group):
        start, end = group

        def add(index, total):
            at, is_own = _rows(start, end, index, block, len(x))
            rows, gradients = (jnp.where(is_own, lax.dynamic_slice_in_dim(one, at, block), 0) for one in (x, dy))
            dimensions = (((0,), (0,)), ((), ()))
            return total + lax.dot_general(rows, gradients, dimensions, preferred_element_type=total.dtype)

        total = _zeros((x.shape[1], dy.shape[1]), accumulator(x.dtype), x)
        return None, lax.fori_loop(0, _blocks(start, end, block), add, total).astype(x.dtype)

    return lax.scan(of_group, None, bounds(sizes, len(x)))[1]


def _rows(
    start: Int[Array, ""], end: Int[Array, ""], index: Int[Array, ""] | int, block: int, rows: int
) -> tuple[Int[Array, ""], Bool[Array, "C 1"]]:
    """Return where a block of a group begins, and which of its rows are the group's and in no block before.

    A block that would reach beyond the last row begins earlier, with rows of the block before it.
    """
    first = start + index * block
    at = jnp.minimum(first, rows - block)
    row = at + jnp.arange(block)
    return at, ((row >= first) & (row < end))[:, None]


def _block(rows: int, groups: int) -> int:
    """Return the rows of a block: about as many as a group has, a power of two where there are as many."""
    return min(max(1 << max(rows // groups, 1).bit_length() - 1, LEAST), MOST, rows)


def _blocks(start: Int[Array, ""], end: Int[Array, ""], block: int) -> Int[Array, ""]:
    return (end - start + block - 1) // block


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: jax.Array) -> Array:
    """Return zeros that vary over the same mesh axes of a shard_map: what a loop carries."""
    return vary(varying(like), jnp.zeros(shape, dtype))[0]
