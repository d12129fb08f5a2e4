"""The balance loss of StableMoE's first stage: Dai et al. (2022), arXiv:2204.08396, section 3.2.

The paper takes the loads of the batch at hand, which are no sum over tokens. Here they are those of the step before, as
in `LoadLoss`, so that the loss is the same on any mesh and in microbatches. In the first step it is 0.
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
class ExcessLoss(Balance):
    """coefficient * sum_e (load_e / mean load - 1) * the weights of its tokens; loads are those of the step before.

    It lowers what tokens score their own expert where that has more of them than the mean, and raises it where it has
    fewer. Other experts of a token have no part in it.
    """

    coefficient: float
    paper: ClassVar[str] = "arXiv:2204.08396"
    evens: ClassVar[bool] = True

    def __post_init__(self):
        check_positive(self, "coefficient")

    def build(self, experts: int) -> dict[str, nnx.Variable]:
        return {"excess_shares": even_shares(experts)}

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        weighed_E = jnp.sum(scores.weights * chosen, axis=(0, 1))
        return {"balance": self.coefficient * jnp.sum((own["excess_shares"][...] - 1) * weighed_E)}

    def update(self, load: Float[Array, " E"], own: Own, numbers: Numbers) -> None:
        own["excess_shares"][...] = shares(load)
