"""Balance without a loss where some experts compute nothing: LongCat-Flash (2025), arXiv:2509.01322, section 2.1.1."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.moe.balances.base import BiasAlone, Numbers, Own
from jaxtrain.nn.moe.routing import TINY
from jaxtrain.nn.param import Buffer
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBias(BiasAlone):
    """A bias in the choice alone, so that a token has `per_token` computing experts in the mean, with like loads.

    A step moves the bias of an expert by rate * (per_token / (top_k * experts) - its share of all choices). Zero
    experts have no bias, and take the rest of the choices.
    """

    rate: float
    per_token: float
    paper: ClassVar[str] = "arXiv:2509.01322"

    def __post_init__(self):
        check_positive(self, "rate", "per_token")

    def check(self, numbers: Numbers) -> None:
        least, most = max(numbers.top_k - numbers.zero_experts, 0), min(numbers.top_k, numbers.experts)
        if not least < self.per_token < most:
            raise ValueError(
                f"per_token={self.per_token}: with top_k={numbers.top_k}, experts={numbers.experts} and "
                f"zero_experts={numbers.zero_experts} it must be above {least} and below {most}"
            )

    def build(self, experts: int) -> dict[str, nnx.Variable]:
        return {"bias": Buffer(jnp.zeros(experts), axes=Axes((None,), Kind.VECTOR, cast=False))}

    def bias(self, own: Own) -> Float[Array, " E"]:
        return own["bias"][...]

    def update(self, load: Float[Array, " E"], own: Own, numbers: Numbers) -> None:
        share_E = load / jnp.maximum(jnp.sum(load), TINY)
        moved_E = self.rate * (self.per_token / (numbers.top_k * numbers.experts) - share_E)
        own["bias"][...] += jnp.where(jnp.arange(numbers.routed) < numbers.experts, moved_E, 0)
