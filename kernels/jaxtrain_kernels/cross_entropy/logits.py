"""Logits from hidden states: the product with the head, the bias, and the soft cap."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Project = Callable[[Float[Array, "*tokens D"], Float[Array, "C D"]], Float[Array, "*tokens C"]]


def logits_of(
    x: Float[Array, "*tokens D"],
    head: Shaped[Array, "C D"],
    project: Project,
    softcap: float | None,
    bias: Float[Array, " C"] | None = None,
) -> Float[Array, "*tokens C"]:
    """Return softcap * tanh(z / softcap), z = project(x, head) + bias, float32; without a soft cap z itself."""
    z = project(x, head)
    z = z if bias is None else z + bias.reshape(*(1,) * (z.ndim - 1), -1)
    return z if softcap is None else softcap * jnp.tanh(z / softcap)


def _unchanged(dx: Float[Array, "*tokens D"]) -> Float[Array, "*tokens D"]:
    return dx


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Float[Array, "*tokens D"], head: Shaped[Array, "C D"], lay_out: Callable = _unchanged):
    """Return x head^T, summed in float32. `lay_out` sets the sharding of the gradient of x.

    The gradient of the logits is rounded to the dtype of `x` before the products. Automatic differentiation would leave
    it in float32, and with it both matrix products and the reduction of the head's gradient.
    """
    return jnp.einsum("...D,CD->...C", x, head, preferred_element_type=jnp.float32)


def _forward(x, head, lay_out):
    return project(x, head, lay_out), (x, head)


def _backward(lay_out, residuals, dlogits):
    x, head = residuals
    dlogits, tokens = dlogits.astype(x.dtype), tuple(range(x.ndim - 1))
    # Before the barrier: behind it the sum over a split vocabulary could not become a reduce-scatter.
    dx = lay_out(jnp.einsum("...C,CD->...D", dlogits, head))
    dhead = jnp.tensordot(dlogits, x, axes=(tokens, tokens))
    # The barrier computes both now. XLA would compute dhead after the backward pass of all layers, and keep the logits.
    return jax.lax.optimization_barrier((dx, dhead))


project.defvjp(_forward, _backward)
