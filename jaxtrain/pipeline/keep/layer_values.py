"""A residual slot that holds what the layers of its chunk keep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax

from jaxtrain.pipeline.keep.base import Keep
from jaxtrain.pipeline.slots import Arrays, at, put_all


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerValues(Keep):
    """Keep what the layers keep, which `model.remat` decides: a slot has a row a layer."""

    paper: ClassVar[str] = "common practice"

    def rows(self, longest: int) -> int:
        return longest

    def row(self, x: jax.Array, values: Arrays) -> Arrays:
        return values

    def enter(self, kept: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        return kept

    def write(self, kept: Arrays, values: Arrays, row: jax.Array) -> Arrays:
        return put_all(kept, values, row)

    def recall(self, kept: Arrays, slot: jax.Array, row: jax.Array, again: Callable) -> tuple[Arrays, jax.Array]:
        return kept, row

    def passed_on(self, values: Arrays) -> Arrays:
        return []

    def read(self, kept: Arrays, row: jax.Array, passed: Arrays) -> Arrays:
        return at(kept, row)
