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

LEFT_OUT = -1e30  # the score of an expert that cannot be chosen, where scores are added


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLimited(Selection):
    """The `top_k` experts with the greatest scores in the best `kept` of `groups` equal groups.

    A group is as good as the sum of its `judged_by` greatest scores: 1 in DeepSeek-V2, 2 in DeepSeek-V3. Where a router
    leaves out experts, groups come first that have more of them.
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
            raise ValueError(
                f"groups={self.groups} does not divide the {experts} experts that are scored; take a divisor"
            )
        if self.judged_by > size:
            raise ValueError(
                f"judged_by={self.judged_by}: a group has only {size} of the {experts} experts; set at most that"
            )
        if top_k > self.kept * size:
            raise ValueError(f"top_k={top_k}: the kept={self.kept} groups have only {self.kept * size} experts")

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        grouped_BLGS = scores.reshape(*scores.shape[:2], self.groups, -1)
        greatest_BLGJ = jax.lax.top_k(grouped_BLGS, self.judged_by)[0]
        worth_BLG = jnp.sum(jnp.maximum(greatest_BLGJ, LEFT_OUT), axis=-1)
        kept_BLG1 = best(worth_BLG, self.kept)[..., None]
        chosen_BLE = best(jnp.where(kept_BLG1 > 0, grouped_BLGS, -jnp.inf).reshape(scores.shape), top_k)
        return (chosen_BLE.reshape(grouped_BLGS.shape) * kept_BLG1).reshape(scores.shape)
