"""The balance loss of Shazeer et al. and Fedus et al. (2021), arXiv:2101.03961, in each row by itself.

By row it is that of DeepSeek-V3 (2024), arXiv:2412.19437, equations 17 to 20.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.moe.balances.base import Balance, Own
from jaxtrain.nn.moe.routing import TINY, Scores
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLoss(Balance):
    """coefficient * sum_e f_e P_e in each row, weighed by the row's tokens; `coefficient` where all loads are alike.

    P_e is the mean probability of expert e, and f_e its share of the loads times the number of experts.
    """

    coefficient: float
    paper: ClassVar[str] = "arXiv:2412.19437"
    evens: ClassVar[bool] = True

    def __post_init__(self):
        check_positive(self, "coefficient")

    @property
    def weight(self) -> float:
        return self.coefficient

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        load_BE = jnp.sum(chosen, axis=1)
        share_BE = load_BE * chosen.shape[-1] / jnp.maximum(jnp.sum(load_BE, axis=-1, keepdims=True), TINY)
        summed_BE = jnp.sum(scores.probabilities * real[..., None], axis=1)
        return {"balance": self.coefficient * jnp.sum(share_BE * summed_BE)}
