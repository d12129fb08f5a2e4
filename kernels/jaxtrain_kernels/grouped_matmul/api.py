"""Products of rows with the matrix of their group: the public functions.

    y_t = x_t w_g(t)        dx_t = dy_t w_g(t)^T        dw_g = sum over rows t of g of x_t^T dy_t

Rows are sorted by group, as in Gale et al. (2022, MegaBlocks), arXiv:2211.15841: no row is dropped, and none is added
to fill a capacity. Each of the two operations is the other's derivative. Left out: 4-bit and 8-bit products (codes of
weights are dequantized before the product), and rows that are gathered on the way in.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.block_quant import QuantizedArray
from jaxtrain_kernels.choice import Implementation, choose
from jaxtrain_kernels.grouped_matmul import gpu, reference, tpu, xla
from jaxtrain_kernels.grouped_matmul.groups import Weights
from jaxtrain_kernels.varying import alike


def grouped_matmul(
    x: Float[Array, "T D"], weights: Weights, sizes: Int[Array, " G"], *, implementation: str | None = None
) -> Float[Array, "T F"]:
    """Return the product of every row with the matrix of its group, in the dtype of `x`; sums are in float32.

    The first `sizes[0]` rows are those of group 0, the next `sizes[1]` those of group 1. Rows behind the last group
    give 0, whatever they hold. `weights` are [G, D, F], in the dtype of `x`, or a QuantizedArray of this shape: its
    codes are dequantized, in the dtype of `x`, a matrix or a tile at a time, and no gradient passes to them. The
    gradient of an empty group is 0.

        order = jnp.argsort(expert_of_token)
        y = grouped_matmul(x[order], weights, jnp.bincount(expert_of_token, length=len(weights)))

    Under jit sizes are not known: groups then end at the last row, and a negative size counts as 0.

    Raises:
        ValueError: shapes or dtypes do not fit each other, or known sizes are negative or more than the rows.
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    sizes = _checked(x, sizes)
    if len(weights.shape) != 3 or weights.shape[:2] != (sizes.shape[0], x.shape[1]):
        expected = f"[{sizes.shape[0]}, {x.shape[1]}, F]"
        raise ValueError(f"weights have shape {weights.shape}: with x {x.shape} and {len(sizes)} sizes give {expected}")
    if isinstance(weights, QuantizedArray):
        if weights.blocks.per_axis(3)[0] != 1:
            raise ValueError(f"weights in {weights.blocks}: a block of codes lies within one group; quantize them so")
    elif weights.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype}, weights are {weights.dtype}: give one dtype to both")
    leaves, structure = jax.tree.flatten((x, weights, sizes))
    x, weights, sizes = jax.tree.unflatten(structure, alike(*map(jnp.asarray, leaves)))
    chosen = choose("grouped_matmul", IMPLEMENTATIONS, implementation, x, weights)
    return chosen.run(x, weights, sizes)


def transposed_grouped_matmul(
    x: Float[Array, "T D"], dy: Float[Array, "T F"], sizes: Int[Array, " G"], *, implementation: str | None = None
) -> Float[Array, "G D F"]:
    """Return, for every group, the sum over its rows of x_t^T dy_t: the gradient of the weights of `grouped_matmul`.

    It is in the dtype of `x`; sums are in float32. An empty group gives exactly 0. Rows behind the last group have no
    part in anything, whatever they hold.

    Raises:
        ValueError: shapes or dtypes do not fit each other, or known sizes are negative or more than the rows.
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    sizes = _checked(x, sizes)
    if dy.ndim != 2 or len(dy) != len(x) or dy.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype} {x.shape}, dy {dy.dtype} {dy.shape}: give one dtype and as many rows to both")
    chosen = choose("transposed_grouped_matmul", TRANSPOSED, implementation, x, dy)
    return chosen.run(*alike(jnp.asarray(x), jnp.asarray(dy), sizes))


def _checked(x: Array, sizes: Array) -> Int[Array, " G"]:
    """Return the sizes in int32. Those that are known, outside of jit, are compared with the rows."""
    if x.ndim != 2 or not len(x) or not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
        raise ValueError(f"x has shape {x.shape} and dtype {x.dtype}: give rows, [T, D], in floats of 16 bits or more")
    if sizes.ndim != 1 or not len(sizes) or not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise ValueError(f"sizes have shape {sizes.shape} and dtype {sizes.dtype}: give one integer a group")
    if not isinstance(sizes, jax.core.Tracer):
        known = np.asarray(sizes)
        if known.min() < 0 or known.sum() > len(x):
            raise ValueError(f"sizes from {known.min()} with a sum of {known.sum()}: x has {len(x)} rows")
    return jnp.asarray(sizes, jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(form: ModuleType, transposed: bool, x, weights, sizes):
    """Return the product with the matrices, or the transposed ones."""
    return form.product(x, weights, sizes, transposed=transposed)


def _product_forward(form: ModuleType, transposed: bool, x, weights, sizes):
    trained = not isinstance(weights, QuantizedArray)
    return _product(form, transposed, x, weights, sizes), (x if trained else None, weights, sizes)


def _product_backward(form: ModuleType, transposed: bool, residuals, dy):
    x, weights, sizes = residuals
    dx = _product(form, not transposed, dy, weights, sizes)
    if x is None:
        return dx, None, None
    return dx, _outer(form, *((dy, x) if transposed else (x, dy)), sizes), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _outer(form: ModuleType, x, dy, sizes):
    """Return the sum over each group's rows of x_t^T dy_t."""
    return form.outer(x, dy, sizes)


def _outer_forward(form: ModuleType, x, dy, sizes):
    return _outer(form, x, dy, sizes), (x, dy, sizes)


def _outer_backward(form: ModuleType, residuals, dw):
    x, dy, sizes = residuals
    return _product(form, True, dy, dw, sizes), _product(form, False, x, dw, sizes), None


_product.defvjp(_product_forward, _product_backward)
_outer.defvjp(_outer_forward, _outer_backward)


def _implementations(run: Callable[[ModuleType], Callable], plain: Callable) -> tuple[Implementation, ...]:
    return (
        Implementation(name="xla", run=run(xla)),
        Implementation(name="tpu", run=run(tpu), refuses=tpu.refuses, proven=False),
        Implementation(name="gpu", run=run(gpu), refuses=gpu.refuses, proven=False),
        Implementation(name="reference", run=plain),
    )


IMPLEMENTATIONS = _implementations(lambda form: functools.partial(_product, form, False), reference.product)
TRANSPOSED = _implementations(lambda form: functools.partial(_outer, form), reference.outer)
