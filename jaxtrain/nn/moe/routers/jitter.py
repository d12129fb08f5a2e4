"""Noise on what a router reads: Fedus et al. (2021), arXiv:2101.03961, appendix B ("input jitter")."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext, fold_in
from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routers.softmax import Softmax
from jaxtrain.nn.moe.routers.wrapper import RouterWrapper
from jaxtrain.nn.moe.routing import Scores

SITE = 0  # of its random numbers in the layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Jitter(RouterWrapper):
    """In training, the router reads its input times a number from [1 - epsilon, 1 + epsilon], drawn for each element.

    The experts read the input itself.
    """

    epsilon: float = 0.01
    router: Router = Softmax()
    paper: ClassVar[str] = "arXiv:2101.03961"
    neutral: ClassVar[tuple[str, ...]] = ("epsilon",)

    def __post_init__(self):
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon}: must be above 0 and below 1")

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        if context.keys is None:
            return self.router(x, context, own)
        low, high = 1 - self.epsilon, 1 + self.epsilon
        draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], minval=low, maxval=high))
        return self.router(x.astype(jnp.float32) * draw(fold_in(context.keys, SITE).rows), context, own)
