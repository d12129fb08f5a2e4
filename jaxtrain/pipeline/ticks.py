"""Pack a table into the ticks of one compiled loop.

In a single program all stages step together, and what a stage sends in one tick arrives in the next. There are two ways
to fill a tick. Both keep every stage's own order, and run each action in the first tick that has room and its inputs:

* paired: one F, then one B, then a few W. For schedules that let every stage run an F and a B in the same tick.
* single: one action a tick, so more ticks, each shorter. For schedules whose neighbours alternate between F and B:
  a pair on one stage would only make the others wait.

`simulator.choose_ticks` finds which of the two takes less time for a table and its costs.
"""

from jaxtrain.pipeline.placement import require_positive
from jaxtrain.pipeline.table import Action, Table, Unit, backward, forward
from jaxtrain.pipeline.validation import result, validate

WEIGHT_SLOTS = 2  # paired schedules with deferred W need two; more only lengthen the program

Ticks = tuple[tuple[int, ...], ...]

_ORDER = {Unit.FORWARD: 0, Unit.BACKWARD: 1, Unit.FUSED: 1, Unit.WEIGHT: 2}


def pack(table: Table, *, paired: bool = True, weight_slots: int = WEIGHT_SLOTS) -> Ticks:
    """Return the tick of every action, by stage and in the stage's order."""
    require_positive(weight_slots=weight_slots)
    validate(table)
    total = 2 + weight_slots if paired else 1
    ticks: list[list[int]] = [[] for _ in table.stages]
    made: dict[Action | None, tuple[int, int]] = {}
    tick = 0
    while any(len(taken) < len(actions) for taken, actions in zip(ticks, table.stages, strict=True)):
        for stage, actions in enumerate(table.stages):
            count = _fill(table, stage, actions[len(ticks[stage]) :], tick, made, weight_slots, total)
            ticks[stage] += [tick] * count
        tick += 1
    last = weight_slots if paired else 1
    return tuple(_delay_weights(actions, taken, tick, last) for actions, taken in zip(table.stages, ticks, strict=True))


def late_head(table: Table, ticks: Ticks) -> bool:
    """Tell whether the head can be late: no microbatch runs B of the last chunk in the tick of its F."""
    last = table.placement.chunks - 1
    at: dict[Action | None, int] = {}
    for actions, taken in zip(table.stages, ticks, strict=True):
        at |= {result(action): tick for action, tick in zip(actions, taken, strict=True) if action.chunk == last}
    pairs = (
        (at[forward(microbatch, last)], at[backward(microbatch, last)]) for microbatch in range(table.microbatches)
    )
    return all(made < read for made, read in pairs)


def _fill(
    table: Table,
    stage: int,
    actions: tuple[Action, ...],
    tick: int,
    made: dict[Action | None, tuple[int, int]],
    weight_slots: int,
    total: int,
) -> int:
    """Run as many of the next actions as this tick has room for; return how many."""
    free = [1, 1, weight_slots]
    taken = last = 0
    for action in actions:
        slot = _ORDER[action.unit]
        room = taken < total and slot >= last and free[slot]
        if not room or not all(_available(made.get(need), stage, tick) for need in table.needs(action)):
            break
        taken, last, free[slot] = taken + 1, slot, free[slot] - 1
        made[result(action)] = (stage, tick)
    return taken


def _available(source: tuple[int, int] | None, stage: int, tick: int) -> bool:
    """Tell whether a result can be read: on its own stage in the same tick, on others in the next."""
    return source is not None and (source[1] < tick or source == (stage, tick))


def _delay_weights(actions: tuple[Action, ...], ticks: list[int], end: int, weight_slots: int) -> tuple[int, ...]:
    """Move the W after a stage's last F and B as late as they fit: other stages still run B in these ticks."""
    latest = list(ticks)
    for free, at in enumerate(reversed(range(len(actions)))):
        if actions[at].unit != Unit.WEIGHT:
            break
        latest[at] = end - 1 - free // weight_slots
    return tuple(latest)
