"""A residual slot that holds only the input of its chunk (stage remat). Huang et al. (2019), arXiv:1811.06965."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtrain.pipeline.residuals.base import Residuals
from jaxtrain.pipeline.slots import Arrays, put_if


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInput(Residuals):
    """Only the chunk's input. B recomputes the residuals: it runs the forward of all repeats but the last again."""

    recomputes: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1811.06965"

    def rows(self, longest: int) -> int:
        return 1

    def row(self, x: jax.Array, residuals: Arrays) -> Arrays:
        return [jax.eval_shape(jnp.squeeze, x)]

    def store_input(self, slots: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        return [put_if(slots[0], jnp.squeeze(x), slot)]

    def store(self, slots: Arrays, residuals: Arrays, row: jax.Array) -> Arrays:
        return slots

    def load(self, slots: Arrays, slot: jax.Array, row: jax.Array, recompute: Callable) -> tuple[Arrays, jax.Array]:
        return recompute(slots[0][slot]), jnp.zeros_like(row)

    def deferred(self, residuals: Arrays) -> Arrays:
        return residuals

    def load_deferred(self, slots: Arrays, row: jax.Array, deferred: Arrays) -> Arrays:
        return deferred
