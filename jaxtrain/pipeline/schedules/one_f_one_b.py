"""1F1B with a flush at the end of the step. Narayanan et al. (2019, 2021), arXiv:1806.03377, arXiv:2104.04473.

Left out: PipeDream's own form, which has no flush and keeps several versions of the weights (weight stashing).
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import one_forward_one_backward
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table, forward, fused, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class OneFOneB(Schedule):
    """GPipe's bubble with at most p - stage activations. In one compiled loop take `PairedOneFOneB` instead."""

    paper: ClassVar[str] = "arXiv:1806.03377"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, microbatches=microbatches)
        count = range(microbatches)
        rows = (
            one_forward_one_backward([forward(i, s) for i in count], [fused(i, s) for i in count], stages - 1 - s)
            for s in range(stages)
        )
        return of_stages(loop(stages), rows)
