"""Every expert computes every token: the definition. Also the training of Pan et al. (2024), arXiv:2404.05567."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.region import Split, in_region
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.shapes import ModelState


@dataclass(frozen=True, kw_only=True, slots=True)
class EveryExpert(Dispatch):
    """Every expert computes every token, and the weights of those not chosen are 0: the time of all experts."""

    paper: ClassVar[str] = "arXiv:2404.05567"

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        def sum_of_own(arrays: ModelState, split: Split, x: Float[Array, "B L D"], weights: Float[Array, "B L E"]):
            y_BLD = jnp.einsum("EBLD,BLE->BLD", experts.all_of(arrays, x), weights)
            return jax.lax.psum(y_BLD, split.experts) if split.experts else y_BLD

        rows, weights = ("expert_batch", "length", None), routing.weights.astype(x.dtype)
        return in_region(sum_of_own, experts, (x, rows), (weights, ("expert_batch", "length", "experts")))
