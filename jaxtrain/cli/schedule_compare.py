"""All schedules side by side for one number of stages and microbatches."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtrain.cli.schedule_catalog import all_schedules
from jaxtrain.pipeline.simulator import Costs, simulate, simulate_ticks


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Figures of one schedule, times in units of the given costs, activations in one stage's of one microbatch."""

    name: str
    chunks_per_stage: float
    replicas: int
    split: bool
    makespan: float
    idle_share: float
    inside_share: float
    tick_idle_share: float
    ticks: int
    peak: float
    transfers: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """A schedule whose rule these numbers break."""

    name: str
    reason: str


def compare(stages: int, microbatches: int, costs: Costs) -> Iterator[Row | Misfit]:
    """Simulate every schedule, with its default parameters, for the same model: costs are those of a whole stage."""
    for name, schedule in all_schedules().items():
        try:
            table = schedule().tuned(costs).table(stages, microbatches)
        except ValueError as error:
            yield Misfit(name=name, reason=str(error))
            continue
        shares = costs.spread(table)
        free, ticked = simulate(table, shares), simulate_ticks(table, shares)
        assert ticked.ticks is not None
        yield Row(
            name=name,
            chunks_per_stage=table.placement.chunks_per_stage,
            replicas=table.placement.replicas,
            split=table.split,
            makespan=free.makespan,
            idle_share=free.idle_share,
            inside_share=max(idle / (idle + work) for idle, work in zip(free.idle_inside, free.work, strict=True)),
            tick_idle_share=ticked.idle_share,
            ticks=ticked.ticks,
            peak=max(free.peaks) / table.placement.chunks_per_stage,
            transfers=sum(free.transfers.values()) / microbatches,
        )
