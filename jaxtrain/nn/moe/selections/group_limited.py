"""Device-limited routing: DeepSeek-V2 (2024), arXiv:2405.04434, section 2.2.2, and DeepSeek-V3, arXiv:2412.19437."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import best
from jaxtrain.nn.moe.selections.base import Selection
from jaxtrain.ranges import check_at_least_one


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLimited(Selection):
    """The `top_k` experts with the greatest scores in the best `kept` of `groups` equal groups.

    A group is as good as the sum of its `judged_by` greatest scores: 1 in DeepSeek-V2, 2 in DeepSeek-V3.
    """

    groups: int
    kept: int
    judged_by: int = 2
    paper: ClassVar[str] = "arXiv:2405.04434"

    def __post_init__(self):
        check_at_least_one(self, "groups", "kept", "judged_by")
        if self.kept > self.groups:
            raise ValueError(f"kept={self.kept}: there are only groups={self.groups}")

    def check(self, experts: int, top_k: int) -> None:
        size = experts // self.groups
        if experts % self.groups:
            raise ValueError(f"groups={self.groups} does not divide experts={experts}")
        if self.judged_by > size:
            raise ValueError(f"judged_by={self.judged_by}: a group has only {size} of the experts={experts}")
        if top_k > self.kept * size:
            raise ValueError(f"top_k={top_k}: the kept={self.kept} groups have only {self.kept * size} experts")

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        grouped_BLGS = scores.reshape(*scores.shape[:2], self.groups, -1)
        worth_BLG = jnp.sum(jax.lax.top_k(grouped_BLGS, self.judged_by)[0], axis=-1)
        kept_BLG1 = best(worth_BLG, self.kept)[..., None]
        return best(jnp.where(kept_BLG1 > 0, grouped_BLGS, -jnp.inf).reshape(scores.shape), top_k)
