"""The definition: every row with the matrix of its group, by a mask of rows and groups.

y_t = sum_g [t in g] x_t w_g        dw_g = sum_t [t in g] x_t^T dy_t
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.chunks import accumulator
from jaxtrain_kernels.grouped_matmul.groups import Weights, bounds, matrices


def product(x: Float[Array, "T D"], weights: Weights, sizes: Int[Array, " G"]) -> Float[Array, "T F"]:
    """Return the products; see api.grouped_matmul."""
    dtype, inside = accumulator(x.dtype), _inside(sizes, len(x))
    w_GDF = matrices(weights, x.dtype).astype(dtype)
    y_TF = jnp.einsum("TGD,GDF->TF", _by_group(x.astype(dtype), inside), w_GDF)
    return jnp.where(jnp.any(inside, axis=1, keepdims=True), y_TF, 0).astype(x.dtype)


def outer(x: Float[Array, "T D"], dy: Float[Array, "T F"], sizes: Int[Array, " G"]) -> Float[Array, "G D F"]:
    """Return the transposed products; see api.transposed_grouped_matmul."""
    dtype, inside = accumulator(x.dtype), _inside(sizes, len(x))
    x_TGD, dy_TGF = (_by_group(rows.astype(dtype), inside) for rows in (x, dy))
    return jnp.einsum("TGD,TGF->GDF", x_TGD, dy_TGF).astype(x.dtype)


def _inside(sizes: Int[Array, " G"], rows: int) -> Bool[Array, "T G"]:
    starts, ends = bounds(sizes, rows)
    row = jnp.arange(rows)[:, None]
    return (starts[None] <= row) & (row < ends[None])


def _by_group(x: Float[Array, "T D"], inside: Bool[Array, "T G"]) -> Float[Array, "T G D"]:
    """Return each row in the place of its group, and 0 in the places of others, also for rows that are not finite."""
    return jnp.where(inside[..., None], x[:, None], 0)
