"""Products of activations with weight matrices."""

import math

import jax
from jaxtyping import Array, Float

from jaxtrain.sharding import axis_size


def dense(x: Float[Array, "B L ..."], w: Float[Array, "..."], *, inputs: int = 1) -> Float[Array, "B L ..."]:
    """Multiply the last `inputs` axes of every token with the first `inputs` axes of a weight.

    Tokens are laid out as the rows of one matrix, so that the product and both its gradients are plain matrix
    products: with batch and length apart, XLA for CPU needs half as long again. A length split over devices stays.
    """
    fan_in = math.prod(w.shape[:inputs])
    matrix = w.reshape(fan_in, -1)
    rows = x.reshape(*x.shape[:2], fan_in) if axis_size("length") > 1 else x.reshape(-1, fan_in)
    y = jax.lax.dot_general(rows, matrix, (((rows.ndim - 1,), (0,)), ((), ())))
    return y.reshape(*x.shape[:2], *w.shape[inputs:])
