"""What a router says of tokens, and what is chosen by it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.technique import Technique


class Scores(NamedTuple):
    """What a router says of each token and each expert, in float32.

    `weights` are what the outputs of experts are weighed by. They are chosen by them, too, where there is no
    `chosen_by`, which is -inf for experts that cannot be chosen. `logits` are what weights were computed from. `aside`
    is what the router's own loss reads.
    """

    logits: Float[Array, "B L E"]
    weights: Float[Array, "B L E"]
    chosen_by: Float[Array, "B L E"] | None = None
    aside: Float[Array, "B L E"] | None = None

    @property
    def judged(self) -> Float[Array, "B L E"]:
        """What experts are chosen by."""
        return self.weights if self.chosen_by is None else self.chosen_by

    def of_each(self, experts: int) -> "Scores":
        """Return the scores of each expert, also where a router says the same of all, `[B, L, 1]`."""
        if self.weights.shape[-1] == experts:
            return self
        return jax.tree.map(lambda score: jnp.broadcast_to(score, (*score.shape[:2], experts)), self)

    @property
    def probabilities(self) -> Float[Array, "B L E"]:
        """The weights of each token over their sum: those of a softmax are unchanged."""
        return self.weights / jnp.maximum(jnp.sum(self.weights, axis=-1, keepdims=True), TINY)


class Routing(NamedTuple):
    """The experts of each token. `chosen` is 1 for them and 0 for others, `weights` is 0 where `chosen` is.

    A token has `top_k` experts in the mean and `most` at most, which are static numbers. Padding has none.
    """

    chosen: Float[Array, "B L E"]
    weights: Float[Array, "B L E"]
    top_k: int
    most: int

    def listed(self) -> tuple[Int[Array, "B L K"], Float[Array, "B L K"], Float[Array, "B L K"]]:
        """Return the numbers of the experts of each token, their weights, and 1 where there is one of that rank.

        Experts of a token come in the order of their numbers.
        """
        there, experts = jax.lax.top_k(self.chosen, min(self.most, self.chosen.shape[-1]))
        return experts, jnp.take_along_axis(self.weights, experts, axis=-1), there


def in_float32(x: Float[Array, "*B D"], weights: Float[Array, "D *E"]) -> Float[Array, "..."]:
    """Return `x @ weights` in float32. By default matrix units would round both to bfloat16 or TF32."""
    return jnp.matmul(x.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST)


TINY = 2.0**-60  # what a sum of weights is at least, where it divides


def best(scores: Float[Array, "*B E"], count: int) -> Float[Array, "*B E"]:
    """Return 1 for the greatest scores along the last axis and 0 for others. Of equal ones the first are taken."""
    _, indices = jax.lax.top_k(scores, count)
    return jnp.sum(jax.nn.one_hot(indices, scores.shape[-1]), axis=-2)


def told(numbers: Int[Array, "B L"] | None, name: str, what: Technique) -> Int[Array, "B L"]:
    """Return the tokens or the tasks of a context. Raises ValueError where the caller gave none."""
    if numbers is None:
        raise ValueError(f"{what!r}: it reads the {name} of a batch, and this one has none: give Batch.{name}")
    return numbers
