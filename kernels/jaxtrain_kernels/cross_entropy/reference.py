"""The definition, over all logits at once.

z = softcap * tanh((x head^T + bias) / softcap)      log_z = log sum exp z      nll = log_z - z[target]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxtrain_kernels.cross_entropy.logits import Project, logits_of


class CrossEntropy(NamedTuple):
    """-log softmax(z)[target], the negative log-likelihood, and log sum exp z, both a token, float32."""

    nll: Float[Array, "*tokens"]
    log_z: Float[Array, "*tokens"]


def cross_entropy(
    x: Float[Array, "*tokens D"],
    head: Shaped[Array, "W D"],
    targets: Int[Array, "*tokens"],
    *,
    bias: Float[Array, " W"] | None,
    softcap: float | None,
    words: int | None,
    tile: int,
    shards: int,
    axis_name: str | None,
    project: Project | None,
) -> CrossEntropy:
    """Return the cross-entropy; see api.cross_entropy. `tile` and `shards` are not used."""
    if axis_name is not None:
        head, bias = jax.lax.all_gather((head, bias), axis_name, tiled=True)
    z = logits_of(x, head, project or _product, softcap, bias)[..., :words]
    log_z = jax.nn.logsumexp(z, axis=-1)
    known = (targets >= 0) & (targets < z.shape[-1])
    at_target = jnp.take_along_axis(z, jnp.where(known, targets, 0)[..., None], axis=-1)[..., 0]
    return CrossEntropy(log_z - jnp.where(known, at_target, 0.0), log_z)


def _product(x: Float[Array, "*tokens D"], head: Shaped[Array, "W D"]) -> Float[Array, "*tokens W"]:
    return jnp.einsum("...D,WD->...W", x, head, preferred_element_type=jnp.float32)
