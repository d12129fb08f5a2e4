"""Chimera: two pipelines in opposite directions over two copies of the weights. Li and Hoefler (2021),
arXiv:2107.06925.

Half of the microbatches enter at each end. The paper concatenates units of p microbatches; here later microbatches
enter as soon as there is room. Each weight's gradient is the sum over its two copies.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import by_age
from jaxtrain.pipeline.placement import bidirectional, loop
from jaxtrain.pipeline.schedules.base import Schedule, require_multiple
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Chimera(Schedule):
    """Bubble (p-2)/(3N/2+p-2) of all time for N = p microbatches and B twice F; two weight copies."""

    paper: ClassVar[str] = "arXiv:2107.06925"

    def table(self, stages: int, microbatches: int) -> Table:
        placement = bidirectional(loop(stages))
        require_multiple(microbatches, 2, "half of them enter at each end")
        return by_age(placement, microbatches)
