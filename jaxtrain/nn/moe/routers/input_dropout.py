"""Dropout on what a router reads: Fedus et al. (2021), arXiv:2101.03961, appendix B ("input dropout")."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext, dropout
from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routers.softmax import Softmax
from jaxtrain.nn.moe.routers.wrapper import RouterWrapper
from jaxtrain.nn.moe.routing import Scores

SITE = 1  # of its random numbers in the layer


@dataclass(frozen=True, kw_only=True, slots=True)
class InputDropout(RouterWrapper):
    """In training, the router reads its input with a share `rate` of the elements set to 0, and the rest scaled up.

    The experts read the input itself.
    """

    rate: float = 0.1
    router: Router = Softmax()
    paper: ClassVar[str] = "arXiv:2101.03961"
    neutral: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate}: must be above 0 and below 1")

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        return self.router(dropout(x.astype(jnp.float32), self.rate, context.keys, SITE), context, own)
