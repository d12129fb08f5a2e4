"""Next-token cross-entropy, with the z-loss of PaLM (Chowdhery et al., 2022, arXiv:2204.02311, section 5)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxtrain.models.decoder import Decoder
from jaxtrain.objectives.sums import Sums
from jaxtrain.shapes import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken:
    """sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2), float32, in nats."""

    z_loss: float = 0.0

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss}: must not be negative")

    def __call__(self, model: Decoder, batch: Batch, keys: Key[Array, " B"] | None) -> Sums:
        nll_BL, log_z_BL = cross_entropy(model(batch, keys), batch.targets)
        nll = jnp.sum(nll_BL * batch.weights)
        z = jnp.sum(jnp.square(log_z_BL) * batch.weights)
        return Sums(nll + self.z_loss * z, jnp.sum(batch.weights), {"nll": nll})


def cross_entropy(
    logits: Float[Array, "B L W"], targets: Int[Array, "B L"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """Return -log softmax(logits)[target] and log-sum-exp(logits), both a token."""
    log_z_BL = jax.nn.logsumexp(logits, axis=-1)
    # A sum over the vocabulary, not a gather from it: every device reads only its own part of a split vocabulary.
    is_target = targets[..., None] == jnp.arange(logits.shape[-1])[None, None]
    return log_z_BL - jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1), log_z_BL
