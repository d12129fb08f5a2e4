"""The base class of routers: they score the experts for each token."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.nn.param import normal
from jaxtrain.technique import Technique


class Router(Technique):
    """A frozen dataclass that scores the experts for each token. All its arithmetic is in float32.

    A router with other parameters than one matrix builds them in `build`.
    """

    __slots__ = ()

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """Return the variables of the router, by their names in the mixture."""
        matrix = normal(rngs.params(), (d_model, experts), ("embed", None), fan_in=d_model)
        return {"router": nnx.Param(matrix[...], axes=Axes(("embed", None), Kind.MATRIX, cast=False))}

    @abstractmethod
    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Mapping[str, Any]) -> Scores:
        """Return the scores; `own` is what `build` made."""


def linear_logits(x: Float[Array, "B L D"], own: Mapping[str, Any]) -> Float[Array, "B L E"]:
    """Return `x` times the router's matrix, in float32. By default matrix units would round to bfloat16 or TF32."""
    return jnp.matmul(x.astype(jnp.float32), own["router"][...], precision=jax.lax.Precision.HIGHEST)
