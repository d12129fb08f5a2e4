"""Costs of a schedule's actions: given for a whole stage, or counted from the model of a configuration.

A `Plan` turns a schedule into its table and the costs of the table's chunks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from jaxtrain.cli.config_file import load
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.table import Table

type Plan = Callable[[Schedule, int, int], tuple[Table, Costs]]  # takes a schedule, stages and microbatches


class Priced(NamedTuple):
    """How to plan a schedule, and a description of the costs."""

    plan: Plan
    words: str


def of_stage(costs: Costs) -> Priced:
    """Return a plan with the same costs of a whole stage for every schedule, spread over the stage's chunks."""

    def plan(schedule: Schedule, stages: int, microbatches: int) -> tuple[Table, Costs]:
        table = schedule.tuned(costs).write(stages, microbatches)
        return table, costs.spread(table)

    return Priced(plan, f"F:B:W = {_ratio(costs)}")


def of_model(path: str, import_from: Sequence[str] = ()) -> Priced:
    """Return a plan with the costs that a run of a configuration has, at its longest sequences.

    They are FLOPs of its repeats, in units of a repeat's forward.
    """
    from jaxtrain.train.gradients.pipelined import Pipelined  # imported here, because importing JAX takes a second

    config = load(path, import_from=import_from).config
    given = config.gradients if isinstance(config.gradients, Pipelined) else Pipelined(microbatches=1)
    length = max(phase.sequence_length for phase in config.phases)

    def plan(schedule: Schedule, stages: int, microbatches: int) -> tuple[Table, Costs]:
        return replace(given, schedule=schedule, microbatches=microbatches).plan(stages, config.model, length)

    costs = given.repeat_costs(config.model, length)
    return Priced(plan, f"F:B:W = {_ratio(costs)}, a layer's FLOPs of {path} at {length} tokens")


def _ratio(costs: Costs) -> str:
    return ":".join(f"{cost:.3g}" for cost in (costs.forward, costs.backward, costs.weight))
