"""Token embeddings, learned positions, and the output head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.axes import Kind
from jaxtrain.mesh import constrain
from jaxtrain.nn.param import normal


class Embedding(nnx.Module):
    """A table looked up by token; rows have unit variance over sqrt(D) so that a tied head starts near uniform."""

    def __init__(self, vocab_size: int, d_model: int, *, rngs: nnx.Rngs):
        shape, names = (vocab_size, d_model), ("vocab", "embed")
        self.table = normal(rngs.params(), shape, names, fan_in=d_model, kind=Kind.TABLE)


class Positions(nnx.Module):
    """One learned vector a position (GPT-2)."""

    def __init__(self, max_length: int, d_model: int, *, rngs: nnx.Rngs):
        shape, names = (max_length, d_model), ("places", "embed")
        self.table = normal(rngs.params(), shape, names, fan_in=d_model, kind=Kind.TABLE)


def look_up(table: Float[Array, "W D"], ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    return jnp.take(table, ids, axis=0, mode="clip")


@jax.custom_vjp
def project(x: Float[Array, "B L D"], table: Float[Array, "W D"]) -> Float[Array, "B L W"]:
    """Return float32 logits, summed in float32.

    The gradient of the logits is rounded to the dtype of `x` before it is multiplied: left in float32, as automatic
    differentiation would, it would drag both matrix products and the reduction of the table's gradient into float32.
    """
    return jnp.einsum("BLD,WD->BLW", x, table, preferred_element_type=jnp.float32)


def _project_forward(x, table):
    return project(x, table), (x, table)


def _project_backward(residuals, dlogits):
    x, table = residuals
    dlogits = dlogits.astype(x.dtype)
    dx, dtable = jnp.einsum("BLW,WD->BLD", dlogits, table), jnp.einsum("BLW,BLD->WD", dlogits, x)
    # Scattered before the barrier, which would otherwise keep the sum over `vocab` from becoming a reduce-scatter.
    dx = constrain(dx, "batch", "residual_length", None)
    # Both now: the compiler would put the second off until after the backward pass of all layers, logits kept for it.
    return jax.lax.optimization_barrier((dx, dtable))


project.defvjp(_project_forward, _project_backward)
