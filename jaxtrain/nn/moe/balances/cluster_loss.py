"""Clusters of experts with like inputs: MoEC, Xie et al. (2022), arXiv:2207.09094.

Of its constraints on variances this is the one within clusters. What keeps clusters apart is left to the choice of
experts; loads are kept alike by another balance beside it.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.moe.balances.base import Balance, Numbers, Own
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterLoss(Balance):
    """coefficient * the variance of a token's probabilities within each of `clusters` equal groups, summed over groups.

    So the experts of a group come to have the same tokens, and each learns from more of them.
    """

    clusters: int
    coefficient: float
    paper: ClassVar[str] = "arXiv:2207.09094"

    def __post_init__(self):
        check_at_least_one(self, "clusters")
        check_positive(self, "coefficient")

    def check(self, numbers: Numbers) -> None:
        if numbers.routed % self.clusters:
            raise ValueError(
                f"clusters={self.clusters} does not divide the {numbers.routed} experts that are scored; take a divisor"
            )

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        grouped_BLGS = scores.probabilities.reshape(*real.shape, self.clusters, -1)
        variance_BL = jnp.sum(jnp.var(grouped_BLGS, axis=-1), axis=-1)
        return {"cluster": self.coefficient * jnp.sum(variance_BL * real)}
