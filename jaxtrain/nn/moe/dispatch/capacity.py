"""Experts with a number of places for the tokens of a row: Lepikhin et al. (2020), arXiv:2006.16668, algorithm 1.

And Fedus et al. (2021), arXiv:2101.03961, section 2.2. Places are counted in each row by itself, so that what is
dropped depends neither on mesh nor on microbatches.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.region import in_region
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity(Dispatch):
    """Each expert has ceil(length * top_k / experts * factor) places for a row. It drops the tokens that come later.

    Tokens are sent and fetched by products with one-hot matrices. Over the mesh axis `expert` that is an all-to-all
    each way.
    """

    factor: float = 1.25
    drops: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:2006.16668"

    def __post_init__(self):
        if not 1.0 <= self.factor < float("inf"):
            raise ValueError(f"factor={self.factor}: must be at least 1, places for the tokens of balanced experts")

    def places(self, routing: Routing) -> int:
        """Return the number of places that an expert has for the tokens of a row."""
        _, length, experts = routing.chosen.shape
        return min(math.ceil(length * routing.top_k / experts * self.factor), length)

    def kept(self, routing: Routing) -> Float[Array, "B L E"]:
        return routing.chosen * (jnp.cumsum(routing.chosen, axis=1) <= self.places(routing))

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        place_BLE = jnp.where(self.kept(routing) > 0, jnp.cumsum(routing.chosen, axis=1) - 1, -1)
        sent_BLEC = jax.nn.one_hot(place_BLE.astype(jnp.int32), self.places(routing), dtype=x.dtype)
        x_EBCD = jnp.einsum("BLEC,BLD->EBCD", sent_BLEC, x)
        by_row, by_expert = (None, "batch", None, None), ("experts", "expert_batch", "places", None)
        # The products stay with the rows. Where fsdp, expert and tensor all split something, the layouts that XLA chose
        # by itself gave wrong rows (docs/log.md).
        x_EBCD = constrain(x_EBCD, *by_row)
        y_EBCD = in_region(lambda arrays, _, x: experts.each(arrays, x), experts, (x_EBCD, by_expert))
        weights_BLE = routing.weights.astype(x.dtype)
        return jnp.einsum("EBCD,BLEC,BLE->BLD", constrain(y_EBCD, *by_row), sent_BLEC, weights_BLE)
