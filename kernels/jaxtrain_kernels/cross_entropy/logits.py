"""From hidden states to logits: the product with the head, and the soft cap."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Project = Callable[[Float[Array, "*tokens D"], Float[Array, "C D"]], Float[Array, "*tokens C"]]


def logits_of(
    x: Float[Array, "*tokens D"], head: Float[Array, "C D"], project: Project, softcap: float | None
) -> Float[Array, "*tokens C"]:
    """Return z = softcap * tanh(project(x, head) / softcap), float32; without a soft cap the product itself."""
    z = project(x, head)
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def _as_it_is(dx: Float[Array, "*tokens D"]) -> Float[Array, "*tokens D"]:
    return dx


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Float[Array, "*tokens D"], head: Float[Array, "C D"], place: Callable = _as_it_is):
    """Return x head^T, summed in float32. `place` lays the gradient of x out over devices.

    The gradient of the logits is rounded to the dtype of `x` before it is multiplied: left in float32, as automatic
    differentiation would, it would drag both matrix products and the reduction of the head's gradient into float32.
    """
    return jnp.einsum("...D,CD->...C", x, head, preferred_element_type=jnp.float32)


def _forward(x, head, place):
    return project(x, head, place), (x, head)


def _backward(place, residuals, dlogits):
    x, head = residuals
    dlogits, tokens = dlogits.astype(x.dtype), tuple(range(x.ndim - 1))
    # Placed before the barrier, which would otherwise keep the sum over a split vocabulary from being a reduce-scatter.
    dx = place(jnp.einsum("...C,CD->...D", dlogits, head))
    dhead = jnp.tensordot(dlogits, x, axes=(tokens, tokens))
    # Both now: the compiler would put the second off until after the backward pass of all layers, logits kept for it.
    return jax.lax.optimization_barrier((dx, dhead))


project.defvjp(_forward, _backward)
