"""An automatic zero-bubble schedule for given costs and memory. After Qi et al. (2023), arXiv:2401.10241, section 3.1.

The paper fills each stage's time by a greedy rule with a few binary choices, and tries all of them. Here the candidates
are the family of ZB-H1 and ZB-H2: a warm-up of `slope` forwards for each later stage, W deferred up to the memory
limit. Each is taken as it is, and reordered by list scheduling at these costs, with and without `patient`. The fastest
table wins, of equals the one that keeps less. The paper's integer program is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from jaxtrain.pipeline.list_scheduling import reorder
from jaxtrain.pipeline.orders import split_row
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.simulator import Costs, peak_activations, simulate
from jaxtrain.pipeline.table import Table, of_stages

COSTS = ("forward", "backward", "weight", "transfer")
_SLOPES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZBSearch(Schedule):
    """Costs of one stage's units, those not given the model's; `memory_limit` in microbatches' activations, 0 for p."""

    forward: float | None = None
    backward: float | None = None
    weight: float | None = None
    transfer: float | None = None
    memory_limit: int = 0
    paper: ClassVar[str] = "arXiv:2401.10241"

    def __post_init__(self) -> None:
        if self.memory_limit < 0:
            raise ValueError(
                f"memory_limit={self.memory_limit} must be at least 1, or 0 for as many as stages; nearest 0"
            )
        _ = self.costs  # Costs checks the values

    @property
    def costs(self) -> Costs:
        return Costs(**{name: cost for name in COSTS if (cost := getattr(self, name)) is not None})

    def tuned(self, costs: Costs) -> Self:
        return replace(self, **{name: getattr(costs, name) for name in COSTS if getattr(self, name) is None})

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, microbatches=microbatches)
        candidates = self._candidates(stages, microbatches, self.memory_limit or stages)
        return min(candidates, key=lambda table: (simulate(table, self.costs).makespan, max(peak_activations(table))))

    def _candidates(self, stages: int, microbatches: int, limit: int) -> Iterator[Table]:
        for slope in _SLOPES:
            rows = []
            for stage in range(stages):
                warmup = min(limit, 1 + int(slope * (stages - 1 - stage)))
                rows.append(split_row(stage, microbatches, warmup=warmup, deferred=limit - warmup))
            table = of_stages(loop(stages), rows)
            yield table
            yield reorder(table, self.costs, limit=limit)
            yield reorder(table, self.costs, limit=limit, patient=True)
