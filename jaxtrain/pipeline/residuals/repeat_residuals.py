"""A residual slot that holds the residuals of every repeat of its chunk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax

from jaxtrain.pipeline.residuals.base import Residuals
from jaxtrain.pipeline.slots import Arrays, at, put_all


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatResiduals(Residuals):
    """The residuals of every repeat, which `model.remat` chooses: a slot has one row a repeat."""

    paper: ClassVar[str] = "common practice"

    def rows(self, longest: int) -> int:
        return longest

    def row(self, x: jax.Array, residuals: Arrays) -> Arrays:
        return residuals

    def store_input(self, slots: Arrays, x: jax.Array, slot: jax.Array) -> Arrays:
        return slots

    def store(self, slots: Arrays, residuals: Arrays, row: jax.Array) -> Arrays:
        return put_all(slots, residuals, row)

    def load(self, slots: Arrays, slot: jax.Array, row: jax.Array, recompute: Callable) -> tuple[Arrays, jax.Array]:
        return slots, row

    def deferred(self, residuals: Arrays) -> Arrays:
        return []

    def load_deferred(self, slots: Arrays, row: jax.Array, deferred: Arrays) -> Arrays:
        return at(slots, row)
