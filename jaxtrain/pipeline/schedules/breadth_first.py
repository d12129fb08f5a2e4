"""Breadth-first pipeline: all microbatches through a chunk before the next chunk. Lamy-Poirier (2022),
arXiv:2211.05953.

In this order an executor can gather the sharded parameters of a chunk once for all its microbatches. Ours gathers them
for each microbatch, so the remaining gain is a bubble as small as the interleaved schedule's. With m < p microbatches
each of the v-1 returns to the first stage waits for p-m of them.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Action, Table, forward, fused, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class BreadthFirst(Schedule):
    """Bubble (p-1)/(vm+p-1) of all time, with m >= p; activations of all m microbatches."""

    chunks_per_stage: int = 2
    paper: ClassVar[str] = "arXiv:2211.05953"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, chunks_per_stage=self.chunks_per_stage, microbatches=microbatches)
        rows = (_row(stage, stages, microbatches, self.chunks_per_stage) for stage in range(stages))
        return of_stages(loop(stages, self.chunks_per_stage), rows)


def _row(stage: int, stages: int, microbatches: int, chunks_per_stage: int) -> list[Action]:
    order = [(i, chunk) for chunk in range(stage, stages * chunks_per_stage, stages) for i in range(microbatches)]
    return [forward(*unit) for unit in order] + [fused(*unit) for unit in reversed(order)]
