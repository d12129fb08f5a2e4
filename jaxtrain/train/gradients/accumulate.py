"""Gradient accumulation: microbatches run one after another, and their gradients are added."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtrain.nn.layer import Keys
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.train.gradients.base import Loss, Strategy, Value, deal_out


@dataclass(frozen=True, kw_only=True, slots=True)
class Accumulate(Strategy):
    """Add the gradients of `microbatches` equal parts of the batch, one after another; 1 takes it whole."""

    microbatches: int = 1
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        if self.microbatches < 1:
            raise ValueError(f"microbatches={self.microbatches}: must be at least 1")

    def __call__(self, loss: Loss, params: ParamTree, batch: Batch, keys: Keys | None) -> tuple[Value, ParamTree]:
        value_and_grad = jax.value_and_grad(loss.__call__, has_aux=True)
        if self.microbatches == 1:
            return value_and_grad(params, batch, keys)

        def add(total, part):
            return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

        parts = deal_out((batch, keys), self.microbatches)
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(value_and_grad, params, *first))
        return jax.lax.scan(add, zeros, parts)[0]
