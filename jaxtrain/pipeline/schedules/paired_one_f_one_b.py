"""Paired 1F1B: one F and one B in every tick on every stage, for one compiled loop.

In such a loop a stage's tick lasts as long as that of its slowest neighbour. In plain 1F1B neighbours alternate between
F and B: on 8 stages with 32 microbatches it is idle 35% of the time, GPipe 18%. Here the forwards start so early that F
and B of a stage fall into the same tick. The schedule then has GPipe's bubble at any ratio of F to B. It costs memory:
2p-1 activations on stage 0, where 1F1B keeps p.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import interleaved_row
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedOneFOneB(Schedule):
    """Bubble (p-1)/(m+p-1) of all time in tick mode, too; peak 2p-1."""

    paper: ClassVar[str] = "of this project, after arXiv:1806.03377"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, microbatches=microbatches)
        rows = (interleaved_row(stage, stages, microbatches, 1) for stage in range(stages))
        return of_stages(loop(stages), rows)
