"""ZB-H1: 1F1B with the backward split, at 1F1B's memory. Qi et al. (2023), arXiv:2401.10241, section 2.2.

Stage s defers its W by s microbatches. Every stage then keeps p activations (up to W), and W fill idle time at the end.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import split_row
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class ZBH1(Schedule):
    """Bubble (p-1)/(3m+p-1) of all time at F = B = W; peak p."""

    paper: ClassVar[str] = "arXiv:2401.10241"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, microbatches=microbatches)
        rows = (split_row(stage, microbatches, warmup=stages - stage, deferred=stage) for stage in range(stages))
        return of_stages(loop(stages), rows)
