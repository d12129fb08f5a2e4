"""Lower a table to a `TickProgram`: assign ticks, buffer slots, and where each result goes.

The form of the program is described in `tick_program`. Within a stage the order of actions stays the table's. Residuals
and deferred values live between actions of one stage, so their slots are coloured by that order, and residual slots
equal the simulator's peak on every stage. Inputs and gradients arrive by tick, so they are coloured by tick.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxtrain.pipeline.coloring import Lifetime, color
from jaxtrain.pipeline.placement import require_neighbours
from jaxtrain.pipeline.simulator import Costs, choose_ticks
from jaxtrain.pipeline.table import Action, Table, Unit, backward, forward
from jaxtrain.pipeline.tick_program import (
    Arrivals,
    Backward,
    Forward,
    FromHead,
    Payloads,
    Slots,
    Target,
    TickProgram,
    Weight,
)
from jaxtrain.pipeline.ticks import WEIGHT_SLOTS, Ticks, late_head
from jaxtrain.pipeline.validation import result

Piece = tuple[int, int]  # microbatch, chunk

# Moments of a tick at which mailboxes are written and read.
_ARRIVAL, _FORWARD, _HEAD, _BACKWARD, _MOMENTS = range(5)


def lower(
    table: Table, costs: Costs | None = None, *, ticks: Ticks | None = None, weight_slots: int = WEIGHT_SLOTS
) -> TickProgram:
    """Return the program, with the given ticks or with those that take the least time at these costs."""
    require_neighbours(table.placement)
    plan = _Plan(table, ticks or choose_ticks(table, costs, weight_slots=weight_slots))
    outputs = [plan.output(action) for actions in table.stages for action in actions if action.unit != Unit.WEIGHT]
    residuals, deferred = _colored(map(_residuals, table.stages)), _colored(map(_deferred, table.stages))
    inputs = _colored(plan.lifetimes(outputs, Unit.FORWARD))
    gradients = _colored(plan.lifetimes(outputs, Unit.BACKWARD))
    return TickProgram(
        placement=table.placement,
        routes=table.routes,
        forward=_forward(plan, outputs, inputs.slots, residuals.slots),
        from_head=_from_head(plan, outputs, gradients.slots),
        backward=_backward(plan, outputs, gradients.slots, residuals.slots, deferred.slots),
        weight=_weight(plan, residuals.slots, deferred.slots),
        arrivals=_arrivals(plan, outputs, inputs.slots, gradients.slots),
        embedding=plan.by_replica(lambda action: action.unit == Unit.FORWARD and action.chunk == 0),
        head=plan.by_replica(
            lambda action: action.unit == Unit.FORWARD and action.chunk == plan.last_chunk, after=plan.head_after
        ),
        embedding_gradient=plan.by_replica(lambda action: action.sends_gradient and action.chunk == 0),
        slots=Slots(*(max(kind.counts) for kind in (inputs, residuals, gradients, deferred))),
        residuals_by_stage=residuals.counts,
        payloads=Payloads(_most(outputs, Target.NEXT), _most(outputs, Target.PREVIOUS)),
        ring=any(_wraps(output, plan.stages) for output in outputs),
        late_head=bool(plan.head_after),
    )


class _Position(NamedTuple):
    """The tick and the stage in which an action runs."""

    tick: int
    stage: int


class _Output(NamedTuple):
    """The result of an F or B, and the piece that reads it: None at the model's two ends."""

    action: Action
    source: _Position
    target: Target
    reader: Piece | None
    reader_stage: int


class _Colored(NamedTuple):
    """The slot of every value of one buffer, and how many slots each stage needs."""

    slots: Mapping[Piece, int]
    counts: tuple[int, ...]


class _Plan:
    """The table with the position of every action."""

    def __init__(self, table: Table, ticks: Ticks):
        self.table = table
        self.stages = len(table.stages)
        self.last_chunk = table.placement.chunks - 1
        self.held = {pair: at for pairs in table.placement.held for at, pair in enumerate(pairs)}
        self.positions = {
            action: _Position(tick, stage)
            for stage, (actions, at) in enumerate(zip(table.stages, ticks, strict=True))
            for action, tick in zip(actions, at, strict=True)
        }
        self.results = {result(action): position for action, position in self.positions.items()}
        self.shape = (1 + max(position.tick for position in self.positions.values()), self.stages)
        self.head_after = int(late_head(table, ticks))  # ticks from the last chunk's F to the head

    def output(self, action: Action) -> _Output:
        """Return where the result of this F or B goes."""
        ahead = action.unit == Unit.FORWARD
        chunk = action.chunk + (1 if ahead else -1)
        source = self.positions[action]
        if not 0 <= chunk <= self.last_chunk:
            return _Output(action, source, Target.END, None, source.stage)
        stage = self.table.home(action._replace(chunk=chunk))
        target = _direction(source.stage, stage, self.stages, ahead)
        return _Output(action, source, target, (action.microbatch, chunk), stage)

    def lifetimes(self, outputs: Iterable[_Output], unit: Unit) -> list[dict[Piece, Lifetime]]:
        """Return by stage how long each value waits in the mailbox of F (inputs) or of B (gradients)."""
        waits: list[dict[Piece, Lifetime]] = [{} for _ in range(self.stages)]
        for action, source, target, reader, stage in outputs:
            if (action.unit == Unit.FORWARD) == (unit == Unit.FORWARD) and reader is not None:
                moment = _FORWARD if unit == Unit.FORWARD else _BACKWARD
                made = (source.tick, moment) if target == Target.HERE else (source.tick + 1, _ARRIVAL)
                waits[stage][reader] = self._until_read(made, Action(unit, *reader), moment)
            elif unit == Unit.BACKWARD and action == forward(action.microbatch, self.last_chunk):
                piece = (action.microbatch, action.chunk)
                made = (source.tick + self.head_after, _HEAD)
                waits[stage][piece] = self._until_read(made, backward(*piece), _BACKWARD)
        return waits

    def _until_read(self, made: tuple[int, int], reader: Action, moment: int) -> Lifetime:
        return Lifetime(made[0] * _MOMENTS + made[1], self.results[reader].tick * _MOMENTS + moment)

    def column(self, action: Action) -> tuple[int, int, int, int]:
        """Return microbatch, chunk, replica and the index among the stage's weights."""
        replica = self.table.routes[action.microbatch]
        return action.microbatch, action.chunk, replica, self.held[replica, action.chunk]

    def empty(self, *more: int) -> np.ndarray:
        return np.full((*self.shape, *more), -1, np.int32)

    def by_replica(self, wanted: Callable[[Action], bool], after: int = 0) -> np.ndarray:
        """Return the microbatch of the wanted actions, [ticks, replicas], `after` ticks later than they run."""
        rows = np.full((self.shape[0], self.table.placement.replicas), -1, np.int32)
        for action, position in self.positions.items():
            if wanted(action):
                rows[position.tick + after, self.table.routes[action.microbatch]] = action.microbatch
        return rows


def _forward(plan: _Plan, outputs: Iterable[_Output], inputs: Mapping, residuals: Mapping) -> Forward[np.ndarray]:
    tables = Forward(*(plan.empty() for _ in Forward._fields))
    for action, position, target, reader, _ in outputs:
        if action.unit == Unit.FORWARD:
            piece = (action.microbatch, action.chunk)
            slot = inputs[reader] if target == Target.HERE else -1
            _set(tables, position, (*plan.column(action), inputs.get(piece, -1), residuals[piece], target, slot))
    return tables


def _from_head(plan: _Plan, outputs: Iterable[_Output], gradients: Mapping) -> FromHead[np.ndarray]:
    tables = FromHead(*(plan.empty() for _ in FromHead._fields))
    for action, position, target, _, _ in outputs:
        if action.unit == Unit.FORWARD and target == Target.END:
            slot = gradients[action.microbatch, action.chunk]
            _set(
                tables, (position.tick + plan.head_after, position.stage), (plan.table.routes[action.microbatch], slot)
            )
    return tables


def _backward(
    plan: _Plan, outputs: Iterable[_Output], gradients: Mapping, residuals: Mapping, deferred: Mapping
) -> Backward[np.ndarray]:
    tables = Backward(*(plan.empty() for _ in Backward._fields))
    for action, position, target, reader, _ in outputs:
        if action.sends_gradient:
            piece = (action.microbatch, action.chunk)
            slot = gradients[reader] if target == Target.HERE else -1
            held = (gradients[piece], residuals[piece], action.unit == Unit.FUSED, deferred.get(piece, -1))
            _set(tables, position, (*plan.column(action), *held, target, slot))
    return tables


def _weight(plan: _Plan, residuals: Mapping, deferred: Mapping) -> Weight[np.ndarray]:
    actions = [(action, position) for action, position in plan.positions.items() if action.unit == Unit.WEIGHT]
    most = max(Counter(position for _, position in actions).values(), default=0)
    tables = Weight(*(plan.empty(most) for _ in Weight._fields))
    used: Counter[_Position] = Counter()
    for action, position in actions:
        piece = (action.microbatch, action.chunk)
        _set(tables, (*position, used[position]), (*plan.column(action), residuals[piece], deferred[piece]))
        used[position] += 1
    return tables


def _arrivals(plan: _Plan, outputs: Iterable[_Output], inputs: Mapping, gradients: Mapping) -> Arrivals[np.ndarray]:
    tables = Arrivals(*(plan.empty() for _ in Arrivals._fields))
    for action, source, target, reader, stage in outputs:
        if target in (Target.NEXT, Target.PREVIOUS):
            ahead, from_previous = action.unit == Unit.FORWARD, target == Target.NEXT
            mailbox = tables[(0 if ahead else 2) + (0 if from_previous else 1)]
            mailbox[source.tick + 1, stage] = (inputs if ahead else gradients)[reader]
    return tables


def _set(tables: Iterable[np.ndarray], position: tuple[int, ...], values: tuple[int, ...]) -> None:
    for table, value in zip(tables, values, strict=True):
        assert table[position] == -1, "two actions in one slot"
        table[position] = value


def _direction(source: int, target: int, stages: int, ahead: bool) -> Target:
    """Return the exchange that carries a result. With two stages both would do: F and B take different ones."""
    if source == target:
        return Target.HERE
    is_next, is_previous = (target - source) % stages == 1, (source - target) % stages == 1
    return Target.NEXT if is_next and (ahead or not is_previous) else Target.PREVIOUS


def _wraps(output: _Output, stages: int) -> bool:
    step = {Target.NEXT: 1, Target.PREVIOUS: -1}.get(output.target, 0)
    return not 0 <= output.source.stage + step < stages


def _most(outputs: Iterable[_Output], target: Target) -> int:
    return max(Counter(output.source for output in outputs if output.target == target).values(), default=0)


def _residuals(actions: tuple[Action, ...]) -> dict[Piece, Lifetime]:
    """Return the lifetimes of residuals: from F to the end of W, in the stage's order."""
    starts = {(a.microbatch, a.chunk): at for at, a in enumerate(actions) if a.starts_activation}
    ends = {(a.microbatch, a.chunk): at for at, a in enumerate(actions) if a.ends_activation}
    return {piece: Lifetime(start, ends[piece]) for piece, start in starts.items()}


def _deferred(actions: tuple[Action, ...]) -> dict[Piece, Lifetime]:
    """Return the lifetimes of deferred values: from B to W, in the stage's order, where the two are separate."""
    starts = {(a.microbatch, a.chunk): at for at, a in enumerate(actions) if a.unit == Unit.BACKWARD}
    ends = {(a.microbatch, a.chunk): at for at, a in enumerate(actions) if a.unit == Unit.WEIGHT}
    return {piece: Lifetime(start, ends[piece]) for piece, start in starts.items()}


def _colored(lifetimes: Iterable[Mapping[Piece, Lifetime]]) -> _Colored:
    colored = [color(stage) for stage in lifetimes]
    slots = {piece: slot for by_piece, _ in colored for piece, slot in by_piece.items()}
    return _Colored(slots, tuple(count for _, count in colored))
