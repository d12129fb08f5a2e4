"""Simulate a table: how long it takes, where stages are idle, what they keep and what they send.

There are two modes. *Free-running*: each stage goes on as soon as its inputs have arrived, as separate programs would;
these are the papers' figures. *Tick*: one compiled loop. Every tick ends in an exchange between neighbours, so a stage
starts a tick when it and its neighbours have finished the tick before. All stages compute the head together, so in a
tick with a head they wait for one another: between F and B, or before the next tick if that is early enough for B
(`ticks.late_head`). Without `head` the last stage computes it alone.

Papers use two figures for the bubble; both are given. `idle_share` is idle time over total time, (p-1)/(m+p-1) for
GPipe. `overhead` is idle time over work, (p-1)/m. `idle_inside` counts only idle time between a stage's own first and
last action. A "zero bubble" schedule has none there; within one synchronous step it still starts and ends staggered.

Left out: contention between transfers, each of which takes `Costs.transfer`; the time of the head itself and of the
embeddings, which stages share. At p=8 and m=32 stages wait for these in one loop for less than a point of all time, 2.2
points for Chimera.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from typing import NamedTuple, Self

from jaxtrain.pipeline.table import Action, Table, Unit
from jaxtrain.pipeline.ticks import WEIGHT_SLOTS, Ticks, late_head, pack
from jaxtrain.pipeline.validation import result, validate, walk

PerChunk = float | tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Time of one action on one chunk, one number for all chunks or one for each, and of a transfer between stages."""

    forward: PerChunk = 1.0
    backward: PerChunk = 1.0
    weight: PerChunk = 1.0
    transfer: float = 0.0

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "weight"):
            if not all(0 < part < inf for part in _parts(getattr(self, name))):
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and finite: every unit takes time")
        if not 0 <= self.transfer < inf:
            raise ValueError(f"transfer={self.transfer} must be at least 0 and finite; nearest 0")

    def spread(self, table: Table) -> Self:
        """Return these costs of a whole stage, divided over its chunks: the same model under any placement."""
        share = table.placement.chunks_per_stage
        return replace(
            self,
            forward=_divide(self.forward, share),
            backward=_divide(self.backward, share),
            weight=_divide(self.weight, share),
        )

    def of_repeats(self, count: float, *, again: bool = False) -> Self:
        """Return these costs of one repeat, for `count` repeats. `again`: B recomputes the F of all but the last."""
        forward, backward, weight = _one(self.forward), _one(self.backward), _one(self.weight)
        recomputed = max(count - 1, 0) * forward if again else 0
        return replace(self, forward=count * forward, backward=count * backward + recomputed, weight=count * weight)

    def of_chunks(self, repeats: Sequence[int], *, again: bool = False) -> Self:
        """Return these costs of one repeat, for chunks of so many repeats."""
        chunks = [self.of_repeats(count, again=again) for count in repeats]
        return replace(
            self,
            forward=tuple(_one(chunk.forward) for chunk in chunks),
            backward=tuple(_one(chunk.backward) for chunk in chunks),
            weight=tuple(_one(chunk.weight) for chunk in chunks),
        )

    def of(self, action: Action) -> float:
        """Return the time of the action."""
        if action.unit == Unit.FUSED:
            return _at(self.backward, action.chunk) + _at(self.weight, action.chunk)
        cost = {Unit.FORWARD: self.forward, Unit.BACKWARD: self.backward, Unit.WEIGHT: self.weight}[action.unit]
        return _at(cost, action.chunk)


class Span(NamedTuple):
    """An action on a stage's timeline."""

    action: Action
    start: float
    end: float


class Link(NamedTuple):
    """One direction between two stages."""

    source: int
    target: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """By stage: timelines, and peaks in chunk activations. By link: transfers. In tick mode: ticks of the loop."""

    timelines: tuple[tuple[Span, ...], ...]
    peaks: tuple[int, ...]
    transfers: Mapping[Link, int]
    ticks: int | None

    @property
    def makespan(self) -> float:
        return max(spans[-1].end for spans in self.timelines)

    @property
    def work(self) -> tuple[float, ...]:
        """Busy time of each stage."""
        return tuple(sum(span.end - span.start for span in spans) for spans in self.timelines)

    @property
    def idle(self) -> float:
        """Idle time of all stages from the step's start to its end."""
        return self.makespan * len(self.timelines) - sum(self.work)

    @property
    def idle_share(self) -> float:
        """Bubble as a share of all time."""
        return self.idle / (self.makespan * len(self.timelines))

    @property
    def overhead(self) -> float:
        """Bubble as a share of the work."""
        return self.idle / sum(self.work)

    @property
    def idle_inside(self) -> tuple[float, ...]:
        """Idle time of each stage between its own first start and last end."""
        spans = zip(self.timelines, self.work, strict=True)
        return tuple(line[-1].end - line[0].start - busy for line, busy in spans)


def peak_activations(table: Table) -> tuple[int, ...]:
    """Return the most chunk activations that each stage holds at once, from F to the end of W. Times do not matter."""
    return _peaks(table, lambda action: action.starts_activation, lambda action: action.ends_activation)


def peak_deferred(table: Table) -> tuple[int, ...]:
    """Return the most chunks whose deferred values each stage holds at once: from B to W, if they are separate."""
    return _peaks(table, lambda action: action.unit == Unit.BACKWARD, lambda action: action.unit == Unit.WEIGHT)


def _peaks(table: Table, starts: Callable[[Action], bool], ends: Callable[[Action], bool]) -> tuple[int, ...]:
    peaks = []
    for actions in table.stages:
        held = peak = 0
        for action in actions:
            held += starts(action)
            peak = max(peak, held)
            held -= ends(action)
        peaks.append(peak)
    return tuple(peaks)


def check_memory(table: Table, limit: float) -> None:
    """Raise if some stage holds more than `limit` microbatches' activations of a whole stage."""
    worst = max(peak_activations(table)) / table.placement.chunks_per_stage
    if worst > limit:
        raise ValueError(
            f"memory_limit={limit:g}: the schedule keeps {worst:g} microbatches' activations on its fullest stage; "
            f"raise the limit to {worst:g} or take a schedule that keeps fewer (`jaxtrain schedule compare` lists them)"
        )


def simulate(table: Table, costs: Costs | None = None) -> Simulation:
    """Simulate the table free-running: each action starts when its stage is free and its inputs have arrived."""
    costs = costs or Costs()
    validate(table)
    ends: dict[Action | None, tuple[int, float]] = {}
    lines: list[list[Span]] = [[] for _ in table.stages]
    for stage, action in walk(table):
        arrivals = [_arrival(ends[need], stage, costs) for need in table.needs(action)]
        start = max([lines[stage][-1].end if lines[stage] else 0.0, *arrivals])
        lines[stage].append(Span(action, start, start + costs.of(action)))
        ends[result(action)] = (stage, start + costs.of(action))
    return _simulation(table, lines, ticks=None)


def simulate_ticks(
    table: Table, costs: Costs | None = None, *, ticks: Ticks | None = None, head: bool = True
) -> Simulation:
    """Simulate the table as one compiled loop, with the given ticks or those of `choose_ticks`."""
    costs = costs or Costs()
    packed = ticks or choose_ticks(table, costs, head=head)
    cells = [_cells(actions, at) for actions, at in zip(table.stages, packed, strict=True)]
    count = 1 + max(map(max, packed))
    neighbours, last, late = _neighbours(table), table.placement.chunks - 1, late_head(table, packed)
    lines: list[list[Span]] = [[] for _ in cells]
    clock, meet = [0.0] * len(cells), False
    for tick in range(count):
        clock = [
            max([clock[stage], *(clock[n] + costs.transfer for n in near)]) for stage, near in enumerate(neighbours)
        ]
        if meet and late:
            clock = [max(clock)] * len(clock)
        now = [cell.get(tick, []) for cell in cells]
        forwards = [[action for action in actions if action.unit == Unit.FORWARD] for actions in now]
        clock = _run(forwards, lines, clock, costs)
        meet = head and any(action.chunk == last for actions in forwards for action in actions)
        if meet and not late:
            clock = [max(clock)] * len(clock)
        clock = _run([actions[len(done) :] for actions, done in zip(now, forwards, strict=True)], lines, clock, costs)
    return _simulation(table, lines, ticks=count)


def _run(cells: list[list[Action]], lines: list[list[Span]], clock: list[float], costs: Costs) -> list[float]:
    """Add these actions to the timelines, each stage's from its own clock on; return the clocks after them."""
    ends = list(clock)
    for stage, actions in enumerate(cells):
        for action in actions:
            lines[stage].append(Span(action, ends[stage], ends[stage] + costs.of(action)))
            ends[stage] += costs.of(action)
    return ends


def choose_ticks(
    table: Table, costs: Costs | None = None, *, weight_slots: int = WEIGHT_SLOTS, head: bool = True
) -> Ticks:
    """Return paired or single ticks: those that take less time at these costs, or as much time in fewer ticks."""

    def time(ticks: Ticks) -> tuple[float, int]:
        return round(simulate_ticks(table, costs, ticks=ticks, head=head).makespan, 9), max(map(max, ticks))

    return min((pack(table, paired=paired, weight_slots=weight_slots) for paired in (True, False)), key=time)


def _cells(actions: tuple[Action, ...], ticks: tuple[int, ...]) -> dict[int, list[Action]]:
    groups = groupby(zip(ticks, actions, strict=True), key=lambda pair: pair[0])
    return {tick: [action for _, action in group] for tick, group in groups}


def _neighbours(table: Table) -> list[set[int]]:
    """Return the stages that each stage waits for in every tick: both neighbours, on a ring if it is used."""
    count = len(table.stages)
    ring = any(abs(link.source - link.target) == count - 1 for link in _transfers(table))
    beside = [{(stage - 1) % count, (stage + 1) % count} if ring else {stage - 1, stage + 1} for stage in range(count)]
    return [near & set(range(count)) - {stage} for stage, near in enumerate(beside)]


def _arrival(source: tuple[int, float], stage: int, costs: Costs) -> float:
    made_on, end = source
    return end if made_on == stage else end + costs.transfer


def _simulation(table: Table, lines: list[list[Span]], ticks: int | None) -> Simulation:
    timelines = tuple(map(tuple, lines))
    return Simulation(timelines=timelines, peaks=peak_activations(table), transfers=_transfers(table), ticks=ticks)


def _transfers(table: Table) -> Mapping[Link, int]:
    homes = {result(action): stage for stage, action in walk(table)}
    pairs = ((homes[need], stage) for stage, action in walk(table) for need in table.needs(action))
    return Counter(Link(source, target) for source, target in pairs if source != target)


def _at(cost: PerChunk, chunk: int) -> float:
    return cost[chunk] if isinstance(cost, tuple) else cost


def _one(cost: PerChunk) -> float:
    """Return the cost that all chunks share."""
    if isinstance(cost, tuple):
        raise ValueError(f"{cost=}: the cost of one repeat is one number")
    return cost


def _parts(cost: PerChunk) -> tuple[float, ...]:
    return cost if isinstance(cost, tuple) else (cost,)


def _divide(cost: PerChunk, share: float) -> PerChunk:
    return tuple(part / share for part in cost) if isinstance(cost, tuple) else cost / share
