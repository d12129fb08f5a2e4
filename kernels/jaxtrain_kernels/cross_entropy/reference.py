"""The definition, over all logits at once.

z = cap * tanh(x W^T / cap)      nll = log sum exp z - z[target]      loss = sum over tokens of
weight * (nll + z_loss * (log sum exp z)^2)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class LossSums(NamedTuple):
    """Sums over the tokens, weighted: the loss, and its negative log-likelihood alone (no gradient)."""

    loss: Float[Array, ""]
    nll: Float[Array, ""]


def cross_entropy(
    x: Float[Array, "T D"],
    head: Float[Array, "W D"],
    targets: Int[Array, " T"],
    weights: Float[Array, " T"],
    *,
    z_loss: float,
    softcap: float | None,
    tile: int,
    axis_name: str | None,
) -> LossSums:
    """Return the sums; see api.cross_entropy. `tile` is not used."""
    if axis_name is not None:
        head = jax.lax.all_gather(head, axis_name, tiled=True)
    logits = jnp.einsum("TD,WD->TW", x, head, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    known = (targets >= 0) & (targets < head.shape[0])
    at_target = jnp.take_along_axis(logits, jnp.where(known, targets, 0)[:, None], axis=-1)[:, 0]
    nll = log_z - jnp.where(known, at_target, 0.0)
    loss = jnp.sum(weights * (nll + z_loss * jnp.square(log_z)))
    return LossSums(loss, jax.lax.stop_gradient(jnp.sum(weights * nll)))
