"""Gradient strategies: how the loss and gradient of one global batch are computed.

A strategy is `value_and_grad`-shaped: `(loss_fn, params, batch, keys) -> (Sums, gradient of the loss sum)`. Sums are
divided once, by the weight of the whole batch, so the result does not depend on how the batch was cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxtrain.mesh import constrain
from jaxtrain.objectives.sums import Sums
from jaxtrain.shapes import Batch, ParamTree

LossFn = Callable[[ParamTree, Batch, Key[Array, " B"] | None], Sums]


@dataclass(frozen=True, kw_only=True, slots=True)
class Accumulate:
    """Add the gradients of `microbatches` equal parts of the batch, one after another; 1 takes it whole."""

    microbatches: int = 1

    def __post_init__(self):
        if self.microbatches < 1:
            raise ValueError(f"microbatches={self.microbatches}: must be at least 1")

    def __call__(
        self, loss_fn: LossFn, params: ParamTree, batch: Batch, keys: Key[Array, " B"] | None
    ) -> tuple[Sums, ParamTree]:
        def loss(params, batch, keys):
            sums = loss_fn(params, batch, keys)
            return sums.loss, sums

        def value_and_grad(part):
            gradient, sums = jax.grad(loss, has_aux=True)(params, *part)
            return sums, gradient

        if self.microbatches == 1:
            return value_and_grad((batch, keys))

        def add(total, part):
            return jax.tree.map(jnp.add, total, value_and_grad(part)), None

        parts = jax.tree.map(self._split, (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, first))
        return jax.lax.scan(add, zeros, parts)[0]

    def _split(self, x: Array) -> Array:
        # Rows are dealt out (microbatch a takes rows a, a+A, ...) so that each device keeps the rows it has.
        rows = x.reshape(x.shape[0] // self.microbatches, self.microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, None, "batch", *(None,) * (x.ndim - 1)) if rows.ndim == 3 else rows
