"""Experts choose their tokens: Zhou et al. (2022), arXiv:2202.09368."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import best
from jaxtrain.nn.moe.selections.base import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertChoice(Selection):
    """Each expert takes the length * top_k / experts tokens of a row for which its score is greatest.

    All experts have the same load, so there is nothing to balance, and a token has any number of experts. The choice
    for a token depends on later ones, so a causal model that is trained with it cannot generate.
    """

    paper: ClassVar[str] = "arXiv:2202.09368"

    @property
    def causal(self) -> bool:
        return False

    @property
    def takes_bias(self) -> bool:
        return False

    def most(self, experts: int, top_k: int) -> int:
        return experts

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        _, length, experts = scores.shape
        tokens = min(max(length * top_k // experts, 1), length)
        of_real_BLE = jnp.where(context.real[..., None] > 0, scores, -jnp.inf)
        return jnp.swapaxes(best(jnp.swapaxes(of_real_BLE, 1, 2), tokens), 1, 2)
