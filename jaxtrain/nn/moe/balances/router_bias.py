"""Balance without a loss: Wang et al. (2024), arXiv:2408.15664."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.moe.balances.base import BiasAlone, Numbers, Own
from jaxtrain.nn.param import Buffer
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterBias(BiasAlone):
    """A bias in the choice alone. A step moves it by `rate`: up for experts below the mean load, down above."""

    rate: float
    paper: ClassVar[str] = "arXiv:2408.15664"
    neutral: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self):
        check_positive(self, "rate")

    def build(self, experts: int) -> dict[str, nnx.Variable]:
        return {"bias": Buffer(jnp.zeros(experts), axes=Axes((None,), Kind.VECTOR, cast=False))}

    def bias(self, own: Own) -> Float[Array, " E"]:
        return own["bias"][...]

    def update(self, load: Float[Array, " E"], own: Own, numbers: Numbers) -> None:
        own["bias"][...] += self.rate * jnp.sign(jnp.mean(load) - load)
