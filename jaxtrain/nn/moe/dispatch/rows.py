"""Rows that are sorted by expert, sent and put back: look-ups whose gradients are look-ups too."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.nn.moe.experts import Experts
from jaxtrain.shapes import ModelState


@jax.custom_vjp
def moved(x: Float[Array, "T D"], rows: Int[Array, " S"], places: Int[Array, " N"]) -> Float[Array, "S D"]:
    """Return the rows of `x` with these numbers, where row `n` is token `n // K`, and 0 for numbers that are none.

    K is N / T, how often each token is asked for, and `places` says where the row `n` is in the result. So the gradient
    is a look-up too, not a sum by index.
    """
    return _found(x, rows // (len(places) // len(x)))


def _found(x: Float[Array, "T D"], rows: Int[Array, " S"]) -> Float[Array, "S D"]:
    # Not `x.at`: outside of jit, JAX 0.11.2 gives the function of a custom derivative constants that have none.
    return jnp.take(x, rows, axis=0, mode="fill", fill_value=0)


def _moved_forward(x, rows, places):
    return moved(x, rows, places), (places, len(x))


def _moved_backward(residuals, dy):
    places, tokens = residuals
    dx_ND = _found(dy, places)
    return jnp.sum(dx_ND.reshape(tokens, -1, dx_ND.shape[-1]), axis=1), None, None


moved.defvjp(_moved_forward, _moved_backward)


def places_of(order: Int[Array, " N"]) -> Int[Array, " N"]:
    """Return the inverse of a permutation."""
    return jnp.argsort(order)


def computed(
    experts: Experts, arrays: ModelState, x: Float[Array, "T D"], group: Int[Array, " N"], count: int
) -> Float[Array, "N D"]:
    """Return what the experts 0 to `count` make of rows, each of its group, and 0 for rows of group `count`.

    Row `n` is token `n // K`, as in `moved`.
    """
    order_N = jnp.argsort(group, stable=True)
    place_N = places_of(order_N)
    sizes_E = jnp.sum(group[:, None] == jnp.arange(count)[None], axis=0, dtype=jnp.int32)
    y_ND = experts.grouped(arrays, moved(x, order_N, place_N), sizes_E)
    return moved(y_ND, place_N, order_N)
