"""GPipe: all forwards, then all backwards. Huang et al. (2019), arXiv:1811.06965.

The paper also recomputes each stage's activations in the backward pass; here that is the model's remat policy.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table, forward, fused, of_stages


@dataclass(frozen=True, kw_only=True, slots=True)
class GPipe(Schedule):
    """Bubble (p-1)/(m+p-1) of all time; activations of all m microbatches on every stage."""

    paper: ClassVar[str] = "arXiv:1811.06965"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, microbatches=microbatches)
        count = range(microbatches)
        rows = ([forward(i, s) for i in count] + [fused(i, s) for i in reversed(count)] for s in range(stages))
        return of_stages(loop(stages), rows)
