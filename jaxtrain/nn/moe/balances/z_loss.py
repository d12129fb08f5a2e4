"""The loss that keeps a router's logits small: Zoph et al. (2022), arXiv:2202.08906, equation 5."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.moe.balances.base import Balance, Own
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ZLoss(Balance):
    """coefficient * log(sum_e exp(logit_e))^2 of each token."""

    coefficient: float
    paper: ClassVar[str] = "arXiv:2202.08906"

    def __post_init__(self):
        check_positive(self, "coefficient")

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        z_BL = jax.nn.logsumexp(scores.logits, axis=-1)
        return {"router_z": self.coefficient * jnp.sum(z_BL**2 * real)}
