"""2BP: defer every weight gradient to the end of the step, over any other schedule. Rae et al. (2024),
arXiv:2405.18047.

All W of a chunk come together there. The paper runs them as one product over the concatenated microbatches, ours as one
product a microbatch. What they read stays in memory until then: the cost is activations of all microbatches.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.one_f_one_b import OneFOneB
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.table import Action, Table, Unit, backward, of_stages, weight


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoBP(Schedule):
    """The given schedule's F and B in its order, then all W."""

    schedule: Schedule = field(default_factory=OneFOneB)
    paper: ClassVar[str] = "arXiv:2405.18047"

    def tuned(self, costs: Costs) -> Self:
        return replace(self, schedule=self.schedule.tuned(costs))

    def table(self, stages: int, microbatches: int) -> Table:
        table = self.schedule.table(stages, microbatches)
        return of_stages(table.placement, (_defer(row, table.routes) for row in table.stages), table.routes)


def _defer(row: tuple[Action, ...], routes: tuple[int, ...]) -> list[Action]:
    kept = [action for action in row if action.unit != Unit.WEIGHT]
    first = [backward(a.microbatch, a.chunk) if a.unit == Unit.FUSED else a for a in kept]
    last = [weight(a.microbatch, a.chunk) for a in first if a.unit == Unit.BACKWARD]
    return first + sorted(last, key=lambda a: (routes[a.microbatch], -a.chunk, a.microbatch))
