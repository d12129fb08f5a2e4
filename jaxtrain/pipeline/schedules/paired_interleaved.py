"""Paired interleaved, the default: interleaved 1F1B with one F and one B in every tick on every stage.

The order is that of Narayanan et al. (2021), arXiv:2104.04473. With several chunks its warm-up is long enough for F and
B of a stage to share a tick. With paired ticks one compiled loop loses (p-1)/(vm+p-1) at any ratio of F to B to W, as
much as separate programs would lose.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.interleaved import Interleaved
from jaxtrain.pipeline.schedules.paired_one_f_one_b import PairedOneFOneB
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedInterleaved(Schedule):
    """Bubble (p-1)/(vm+p-1) of all time in tick mode, too; peak ((v+1)p-1)/v stages' activations if p divides m."""

    chunks_per_stage: int = 2
    paper: ClassVar[str] = "of this project, in the order of arXiv:2104.04473"

    def table(self, stages: int, microbatches: int) -> Table:
        if self.chunks_per_stage == 1:
            return PairedOneFOneB().table(stages, microbatches)
        return Interleaved(chunks_per_stage=self.chunks_per_stage).table(stages, microbatches)
