"""The balance loss of a whole batch, with the loads of the step before.

The loss of Fedus et al. (2021), arXiv:2101.03961, equation 4, multiplies two means over the batch, so it is no sum over
tokens: parts of a batch would each have another one. With the loads of the step before, which are known beforehand, it
is a sum, exact on any mesh.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.moe.balances.base import Balance, Numbers, Own, even_shares, shares
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadLoss(Balance):
    """coefficient * sum_e f_e P_e of the whole batch; f_e are the shares of the step before, 1 where all are alike."""

    coefficient: float
    paper: ClassVar[str] = "arXiv:2101.03961"
    evens: ClassVar[bool] = True

    def __post_init__(self):
        check_positive(self, "coefficient")

    @property
    def weight(self) -> float:
        return self.coefficient

    def build(self, experts: int) -> dict[str, nnx.Variable]:
        return {"shares": even_shares(experts)}

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        summed_E = jnp.sum(scores.probabilities * real[..., None], axis=(0, 1))
        return {"balance": self.coefficient * jnp.sum(own["shares"][...] * summed_E)}

    def update(self, load: Float[Array, " E"], own: Own, numbers: Numbers) -> None:
        own["shares"][...] = shares(load)
