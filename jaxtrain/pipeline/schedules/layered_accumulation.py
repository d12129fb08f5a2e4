"""Layered gradient accumulation with a modular pipeline: chunks of one layer. Lamy-Poirier (2021), arXiv:2106.02679.

Layer i is on stage i mod p, and all microbatches pass it before the next: breadth-first order with the smallest chunks.
The bubble shrinks from the time of p-1 stages to that of p-1 layers; transfers grow by the same factor.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.breadth_first import BreadthFirst
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class LayeredAccumulation(Schedule):
    """With `chunks_per_stage` = L/p, for L layers, chunks of one layer: the forwards take m L/p + p-1 layer times."""

    chunks_per_stage: int = 4
    paper: ClassVar[str] = "arXiv:2106.02679"

    def table(self, stages: int, microbatches: int) -> Table:
        return BreadthFirst(chunks_per_stage=self.chunks_per_stage).table(stages, microbatches)
