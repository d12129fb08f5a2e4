"""The router of the network of one task, as it is taken out of a model that is routed by task."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routing import TINY, Scores
from jaxtrain.nn.param import vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed(Router):
    """A learned weight for each expert, which all tokens have."""

    paper: ClassVar[str] = "arXiv:2110.03742"

    @property
    def reads_tokens(self) -> bool:
        return False

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        return {"weights": vector(jnp.full(experts, 1 / experts), (None,))}

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        weights_BLE = jnp.broadcast_to(own["weights"][...], (*x.shape[:2], own["weights"].shape[0]))
        return Scores(jnp.log(jnp.maximum(weights_BLE, TINY)), weights_BLE)
