"""BitPipe: Chimera with V-shaped interleaving in both directions. Wu et al. (2024), arXiv:2410.19367.

A stage holds two chunks of each of the two weight copies; at the turn of the V data stays on its stage. Left out: the
paper's eager all-reduce of a chunk's two gradients while others still run. Here copies are summed after the step.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import by_age
from jaxtrain.pipeline.placement import bidirectional, v_shape
from jaxtrain.pipeline.schedules.base import Schedule, require_multiple
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class BitPipe(Schedule):
    """Bubble (p-2)/(3N+p-2) of all time for N = p microbatches and B twice F; two weight copies."""

    paper: ClassVar[str] = "arXiv:2410.19367"

    def table(self, stages: int, microbatches: int) -> Table:
        placement = bidirectional(v_shape(stages))
        require_multiple(microbatches, 2, "half of them enter at each end")
        return by_age(placement, microbatches)
