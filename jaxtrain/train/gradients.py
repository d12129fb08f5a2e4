"""Gradient strategies: how the loss and gradient of one global batch are computed.

A strategy is `value_and_grad`-shaped: `(loss, params, batch, keys) -> (Sums, gradient of the loss sum)`. Sums are
divided once, by the weight of the whole batch, so the result does not depend on how the batch was cut. The loss is a
function of the parameters; a strategy that has to take the model apart finds its graph and the objective in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from jaxtrain.mesh import constrain
from jaxtrain.models.decoder import Decoder
from jaxtrain.objectives.sums import Sums
from jaxtrain.shapes import Batch, ParamTree

Objective = Callable[[Decoder, Batch, Key[Array, " B"] | None], Sums]


class Loss(NamedTuple):
    """An objective of a model, as a function of the model's parameters."""

    graph: nnx.GraphDef
    objective: Objective

    def __call__(self, params: ParamTree, batch: Batch, keys: Key[Array, " B"] | None) -> Sums:
        return self.objective(nnx.merge(self.graph, params), batch, keys)


Strategy = Callable[[Loss, ParamTree, Batch, Key[Array, " B"] | None], tuple[Sums, ParamTree]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Accumulate:
    """Add the gradients of `microbatches` equal parts of the batch, one after another; 1 takes it whole."""

    microbatches: int = 1

    def __post_init__(self):
        if self.microbatches < 1:
            raise ValueError(f"microbatches={self.microbatches}: must be at least 1")

    def __call__(
        self, loss: Loss, params: ParamTree, batch: Batch, keys: Key[Array, " B"] | None
    ) -> tuple[Sums, ParamTree]:
        def loss_and_sums(params, batch, keys):
            sums = loss(params, batch, keys)
            return sums.loss, sums

        def value_and_grad(part):
            gradient, sums = jax.grad(loss_and_sums, has_aux=True)(params, *part)
            return sums, gradient

        if self.microbatches == 1:
            return value_and_grad((batch, keys))

        def add(total, part):
            return jax.tree.map(jnp.add, total, value_and_grad(part)), None

        parts = deal_out((batch, keys), self.microbatches)
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, first))
        return jax.lax.scan(add, zeros, parts)[0]


def deal_out(tree, microbatches: int):
    """Cut the rows of a batch into microbatches: microbatch a of A takes rows a, a+A, ..., as `[A, B/A, ...]`.

    So each device keeps the rows it has.
    """

    def deal(x: Array) -> Array:
        rows = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, None, "batch", *(None,) * (x.ndim - 1)) if rows.ndim == 3 else rows

    return jax.tree.map(deal, tree)
