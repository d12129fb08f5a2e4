"""Learning to tell of a token by itself whether it is among the best of its row."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.nn.depth.base import added_at
from jaxtrain.nn.layer import Sums, TokenContext, joined
from jaxtrain.nn.moe.routing import TINY


def membership(
    logits: Float[Array, "B L"], places: Int[Array, "B K"], context: TokenContext, coefficient: float
) -> Sums:
    """Return the binary cross-entropy of the logits, where the tokens at some places are in, and how many are wrong.

    `context` is that of the tokens that the logits are of.
    """
    real = context.real
    inside_BL = added_at(jnp.zeros_like(logits), places, jnp.ones(places.shape))
    nll_BL = jax.nn.softplus(jnp.where(inside_BL > 0, -logits, logits))
    wrong_BL = (logits > 0) != (inside_BL > 0)
    counts = {"wrong": jnp.sum(wrong_BL * real), "tokens": jnp.sum(real)}
    return Sums({"membership": coefficient * jnp.sum(nll_BL * context.loss_weights)}, counts)


def with_own(sums: Sums, own: Sums) -> Sums:
    """Return the sums of a block's layers with those of its depth."""
    nested = joined(depth=own)
    return joined(layers=Sums(sums.terms), own=Sums(nested.terms))._replace(counts={**sums.counts, **nested.counts})


def mispredicted(counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """Return the share of tokens that are predicted to be in and are not, or the other way round."""
    return {"mispredicted": counts["wrong"] / jnp.maximum(counts["tokens"], TINY)} if counts else {}
