"""Schedules as one repeated block: the V family of Qi et al. (2024), arXiv:2405.15362.

The block holds F, B and W of a stage's two chunks. Every microbatch repeats it six units after the microbatch before.
With the V placement a microbatch runs down the stages (F of chunk i), back up (F of chunk 2p-1-i), down again (B of the
second chunk) and up (B of the first). The block is set by how many units pass from stage to stage on each of these four
legs. Shorter legs keep activations for less time. A stage's peak is the sum of the lifetimes of its two chunks, divided
by the interval.

The paper then removes idle time at the start and the end without exceeding the peak. Here both steps are derived, not
taken from the authors' program. Before B a microbatch pauses on stage 0. Every pause is tried that keeps the four
passes of a stage on different units of the interval, and the fastest table is taken. `reorder` removes the idle time.
The figures agree with the paper's.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxtrain.pipeline.list_scheduling import reorder
from jaxtrain.pipeline.placement import require_positive, v_shape
from jaxtrain.pipeline.simulator import Costs, peak_activations, simulate
from jaxtrain.pipeline.table import Action, Table, Unit, of_stages

INTERVAL = 6


class Legs(NamedTuple):
    """Units from one stage to the next on each of the four passes of a microbatch."""

    forward_down: int
    forward_up: int
    backward_down: int
    backward_up: int


def v_table(stages: int, microbatches: int, *, legs: Legs, limit: int) -> Table:
    """Return the fastest table of these legs that keeps at most `limit` chunk activations on every stage."""
    require_positive(stages=stages, microbatches=microbatches)
    tables = [_squeeze(_repeat(stages, microbatches, times), limit) for times in _blocks(stages, legs)]
    fitting = [table for table in tables if table is not None]
    assert fitting, f"no block of {legs} keeps {limit} chunks on {stages} stages"
    return min(fitting, key=lambda table: (simulate(table).makespan, max(peak_activations(table))))


Block = list[dict[tuple[Unit, int], int]]


def _blocks(stages: int, legs: Legs) -> Iterator[Block]:
    """Yield start times of one microbatch's passes by stage, for each pause on stage 0 that lets the block repeat."""
    last = stages - 1
    for pause in range(1, INTERVAL + 1):
        forward_down = [legs.forward_down * stage for stage in range(stages)]
        forward_up = [forward_down[last] + 1 + legs.forward_up * (last - stage) for stage in range(stages)]
        backward_down = [forward_up[0] + pause + legs.backward_down * stage for stage in range(stages)]
        backward_up = [backward_down[last] + 1 + legs.backward_up * (last - stage) for stage in range(stages)]
        passes = list(zip(forward_down, forward_up, backward_down, backward_up, strict=True))
        if all(len({time % INTERVAL for time in times}) == len(times) for times in passes):
            yield [_with_weights(stage, 2 * stages - 1 - stage, times) for stage, times in enumerate(passes)]


def _with_weights(first: int, second: int, times: tuple[int, int, int, int]) -> dict[tuple[Unit, int], int]:
    """Return all start times: the two W take the two free units of the interval, as soon after their B as possible."""
    forward_down, forward_up, backward_down, backward_up = times
    free = [unit for unit in range(INTERVAL) if unit not in {time % INTERVAL for time in times}]
    choices = [(_after(backward_down, a), _after(backward_up, b)) for a, b in (free, free[::-1])]
    weight_down, weight_up = min(choices, key=sum)
    return {
        (Unit.FORWARD, first): forward_down,
        (Unit.FORWARD, second): forward_up,
        (Unit.BACKWARD, second): backward_down,
        (Unit.BACKWARD, first): backward_up,
        (Unit.WEIGHT, second): weight_down,
        (Unit.WEIGHT, first): weight_up,
    }


def _after(time: int, unit: int) -> int:
    return time + 1 + (unit - time - 1) % INTERVAL


def _repeat(stages: int, microbatches: int, block: Block) -> Table:
    rows = (_row(times, microbatches) for times in block)
    return of_stages(v_shape(stages), rows)


def _row(times: dict[tuple[Unit, int], int], microbatches: int) -> list[Action]:
    starts = {
        Action(unit, microbatch, chunk): INTERVAL * microbatch + time
        for (unit, chunk), time in times.items()
        for microbatch in range(microbatches)
    }
    return sorted(starts, key=starts.__getitem__)


def _squeeze(table: Table, limit: int) -> Table | None:
    try:
        return reorder(table, Costs(), limit=limit)
    except ValueError:
        return None
