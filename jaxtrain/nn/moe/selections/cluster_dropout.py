"""Dropout of experts by cluster: MoEC, Xie et al. (2022), arXiv:2207.09094. Its loss is `ClusterLoss`."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext, fold_in
from jaxtrain.nn.moe.routing import best
from jaxtrain.nn.moe.selections.base import Selection
from jaxtrain.ranges import check_at_least_one

SITE = 2  # of its random numbers in the layer


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterDropout(Selection):
    """The `top_k` experts with the greatest scores, of those that a step of training did not drop.

    Experts are `clusters` equal groups. Of each, a step drops a share `rate` of the experts, rounded down, at random.
    """

    clusters: int
    rate: float
    paper: ClassVar[str] = "arXiv:2207.09094"
    neutral: ClassVar[tuple[str, ...]] = ("clusters", "rate")

    def __post_init__(self):
        check_at_least_one(self, "clusters")
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate={self.rate}: must be at least 0 and below 1, so that a cluster keeps an expert")

    def check(self, experts: int, top_k: int) -> None:
        if experts % self.clusters:
            raise ValueError(
                f"clusters={self.clusters} does not divide the {experts} experts that are scored; take a divisor"
            )
        size = experts // self.clusters
        kept = self._kept(size)
        if self.rate and kept == size:
            raise ValueError(f"rate={self.rate} of the {size} experts of a cluster is none: set it to 0, or raise it")
        if top_k > self.clusters * kept:
            raise ValueError(f"top_k={top_k}: with rate={self.rate} only {self.clusters * kept} experts are left")

    def _kept(self, size: int) -> int:
        """Return how many of so many experts of a cluster a step keeps."""
        return size - int(round(size * self.rate, 6))  # 100 * 0.29 is a little less than 29

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        size = scores.shape[-1] // self.clusters
        if context.keys is None or not self.rate:
            return best(scores, top_k)
        drawn_GS = jax.random.uniform(fold_in(context.keys, SITE).step, (self.clusters, size))
        kept_E = best(drawn_GS, self._kept(size)).reshape(-1)
        kept_11E = kept_E[None, None]  # again behind the choice: of scores that are all -inf the first are the best
        return best(jnp.where(kept_11E > 0, scores, -jnp.inf), top_k) * kept_11E
