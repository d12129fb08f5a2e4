"""Gradient strategies: how the loss and gradient of one global batch are computed.

A strategy is `value_and_grad`-shaped: `(loss, params, batch, keys) -> ((loss, Terms), gradient)`. The loss of a part of
the batch is divided by the weights of the whole batch, so the contributions of parts add up to the mean, however the
batch was cut. The loss is a function of the parameters; a strategy that takes the model apart finds its graph in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxtrain.models.decoder import Decoder
from jaxtrain.objectives.base import Objective, Sums, Terms, means
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.sharding import constrain

Value = tuple[Float[Array, ""], Terms]


class Loss(NamedTuple):
    """The mean of an objective as a function of parameters; `weights` are what the whole batch is divided by."""

    graph: nnx.GraphDef
    objective: Objective
    weights: Sums

    def __call__(self, params: ParamTree, batch: Batch, keys: Key[Array, " B"] | None) -> Value:
        """Return what the rows of a batch contribute to the loss, and the sums of its terms."""
        return self.of_model(nnx.merge(self.graph, params), batch, keys)

    def of_model(self, model: Decoder, batch: Batch, keys: Key[Array, " B"] | None) -> Value:
        terms = self.objective(model, batch, keys)
        return sum(means(terms.minimised, self.weights).values()), terms


Strategy = Callable[[Loss, ParamTree, Batch, Key[Array, " B"] | None], tuple[Value, ParamTree]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Accumulate:
    """Add the gradients of `microbatches` equal parts of the batch, one after another; 1 takes it whole."""

    microbatches: int = 1

    def __post_init__(self):
        if self.microbatches < 1:
            raise ValueError(f"microbatches={self.microbatches}: must be at least 1")

    def __call__(
        self, loss: Loss, params: ParamTree, batch: Batch, keys: Key[Array, " B"] | None
    ) -> tuple[Value, ParamTree]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if self.microbatches == 1:
            return value_and_grad(params, batch, keys)

        def add(total, part):
            return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

        parts = deal_out((batch, keys), self.microbatches)
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, *first))
        return jax.lax.scan(add, zeros, parts)[0]


def deal_out(tree, microbatches: int):
    """Cut the rows of a batch into microbatches: microbatch a of A takes rows a, a+A, ..., as `[A, B/A, ...]`.

    So each device keeps the rows it has.
    """

    def deal(x: Array) -> Array:
        rows = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, None, "batch", *(None,) * (x.ndim - 1)) if rows.ndim == 3 else rows

    return jax.tree.map(deal, tree)
