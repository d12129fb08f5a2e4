"""What tells a router's experts apart and keeps all in use: Pan et al. (2024), arXiv:2404.05567, equation 5.

The paper takes the entropy of the mean over a batch, which is no sum over tokens. Here it is that of each row, so that
the loss is the same on any mesh and in microbatches.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.moe.balances.base import Balance, Own
from jaxtrain.nn.moe.routing import TINY, Scores
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class MutualInformation(Balance):
    """-coefficient * (H(mean p) - mean H(p)) in each row, weighed by its tokens; p are a token's probabilities.

    The loss is 0 where all tokens have the same probabilities, and -coefficient * ln(experts) where each is sure of one
    expert and all experts are used alike.
    """

    coefficient: float
    paper: ClassVar[str] = "arXiv:2404.05567"
    evens: ClassVar[bool] = True

    def __post_init__(self):
        check_positive(self, "coefficient")

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        p_BLE = scores.probabilities
        tokens_B = jnp.sum(real, axis=1)
        mean_BE = jnp.sum(p_BLE * real[..., None], axis=1) / jnp.maximum(tokens_B, TINY)[:, None]
        information = jnp.sum(_entropy(mean_BE) * tokens_B) - jnp.sum(_entropy(p_BLE) * real)
        return {"mutual_information": -self.coefficient * information}


def _entropy(p: Float[Array, "*B E"]) -> Float[Array, "*B"]:
    # The gradient of p ln p is not finite at 0, which a softmax in float32 may reach.
    return -jnp.sum(p * jnp.log(jnp.maximum(p, TINY)), axis=-1)
