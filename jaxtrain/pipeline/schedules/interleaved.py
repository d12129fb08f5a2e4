"""Interleaved 1F1B: several chunks a stage in a loop. Narayanan et al. (2021), arXiv:2104.04473.

The paper asks for a multiple of p microbatches. Others pass in groups of a few more than p, as in PyTorch. The bubble
is the same; with groups of g the peak is (v-1)g + 2p-1 chunks on stage 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import interleaved_row
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.one_f_one_b import OneFOneB
from jaxtrain.pipeline.table import Table, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class Interleaved(Schedule):
    """Bubble (p-1)/(vm+p-1) of all time, with m >= p; peak (v+1)p-1 chunks on stage 0 if p divides m. v = 1 is 1F1B."""

    chunks_per_stage: int = 2
    paper: ClassVar[str] = "arXiv:2104.04473"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, chunks_per_stage=self.chunks_per_stage, microbatches=microbatches)
        if self.chunks_per_stage == 1:
            return OneFOneB().table(stages, microbatches)
        rows = (interleaved_row(stage, stages, microbatches, self.chunks_per_stage) for stage in range(stages))
        return of_stages(loop(stages, self.chunks_per_stage), rows)
