"""ZB-H2: twice the warm-up, and no stage is idle between its first and its last action.

Qi et al. (2023), arXiv:2401.10241, section 2.2. Stages start and end staggered by p-1 units. Within one synchronous
step that costs as much as ZB-H1's idle time. The paper avoids this cost: each stage enters the next step early, and the
optimizer update is undone if a global check fails. That is left out here.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import split_row
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class ZBH2(Schedule):
    """No idle unit inside a stage's own span at F = B = W and m >= 2p-1; peak 2p-1."""

    paper: ClassVar[str] = "arXiv:2401.10241"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, microbatches=microbatches)
        rows = (
            split_row(stage, microbatches, warmup=2 * (stages - stage) - 1, deferred=2 * stage)
            for stage in range(stages)
        )
        return of_stages(loop(stages), rows)
