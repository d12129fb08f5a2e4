"""No router: the experts of a token are weighed alike. Zhang et al. (2022), arXiv:2203.03312, section 3.2."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routing import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Equal(Router):
    """The weight of each expert is 1. With `renormalise`, a token has the mean of its experts.

    It takes a selection that reads no scores, such as `Hash` or `BySkills`.
    """

    paper: ClassVar[str] = "arXiv:2203.03312"

    @property
    def reads_tokens(self) -> bool:
        return False

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        return {}

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        same_BL1 = jnp.ones((*x.shape[:2], 1))
        return Scores(jnp.zeros_like(same_BL1), same_BL1)
