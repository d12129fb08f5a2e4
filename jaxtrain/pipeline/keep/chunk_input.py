"""A residual slot that holds the input of its chunk alone (stage remat). Huang et al. (2019), arXiv:1811.06965."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtrain.pipeline.keep.base import Keep
from jaxtrain.pipeline.slots import Arrays, put_if


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkInput(Keep):
    """Keep the chunk's input. B runs its layers but the last once more and keeps then what `model.remat` says."""

    runs_again: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1811.06965"

    def rows(self, longest: int) -> int:
        return 1

    def row(self, x: jax.Array, values: Arrays) -> Arrays:
        return [jax.eval_shape(jnp.squeeze, x)]

    def enter(self, kept: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        return [put_if(kept[0], jnp.squeeze(x), slot)]

    def write(self, kept: Arrays, values: Arrays, row: jax.Array) -> Arrays:
        return kept

    def recall(self, kept: Arrays, slot: jax.Array, row: jax.Array, again: Callable) -> tuple[Arrays, jax.Array]:
        return again(kept[0][slot]), jnp.zeros_like(row)

    def passed_on(self, values: Arrays) -> Arrays:
        return values

    def read(self, kept: Arrays, row: jax.Array, passed: Arrays) -> Arrays:
        return passed
