"""Make a table faster by list scheduling: keep its order as the priority, but let no stage wait while it has work.

Several papers describe a schedule by a pattern or a search rather than by an order. Their files write down the
priority, an ideal order that ignores idle time. `reorder` turns it into per-stage orders by simulating the step:
whenever a stage is free, it takes the first action in its priority order whose inputs have arrived.

Two options bound memory. `limit` caps the activations a stage holds. An action may overtake others only if the rest,
run in priority order after it, stays under the cap; so no deadlock can arise. `in_flight` caps the microbatches that
have entered and not left. One enters when the one `in_flight` before it on the same weight copy has left.
"""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field

from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.table import Action, Table, Unit, backward, of_stages
from jaxtrain.pipeline.validation import result

_NOW = 1e-9  # times closer than this are equal


@dataclass(kw_only=True, slots=True)
class _Stage:
    """What one stage still has to do. `ready` maps each action whose inputs are computed to the time they arrive."""

    pending: list[Action]
    position: dict[Action, int]
    forwards: int
    ready: dict[Action, float] = field(default_factory=dict)
    order: list[Action] = field(default_factory=list)
    free_at: float = 0.0
    held: int = 0

    @classmethod
    def of(cls, actions: tuple[Action, ...]) -> "_Stage":
        forwards = sum(action.starts_activation for action in actions)
        return cls(pending=list(actions), position={a: at for at, a in enumerate(actions)}, forwards=forwards)

    def choose(self, now: float, limit: float, patient: bool, costs: Costs) -> Action | None:
        """Return the first action in priority order that can start now; once no F is left, W come last."""
        candidates = [action for action, arrival in self.ready.items() if arrival <= now + _NOW]
        candidates.sort(key=lambda action: (not self.forwards and action.unit == Unit.WEIGHT, self.position[action]))
        for action in candidates:
            if self._keeps_within(action, limit) and not (
                patient and self._delays_first(action, now + costs.of(action))
            ):
                return action
        return None

    def take(self, action: Action, end: float) -> None:
        del self.ready[action]
        self.pending.remove(action)
        self.order.append(action)
        self.held += _change(action)
        self.forwards -= action.starts_activation
        self.free_at = end

    def _keeps_within(self, action: Action, limit: float) -> bool:
        """Tell whether memory stays under the limit if the action runs first and the rest in priority order."""
        if _change(action) < 0 and self.held <= limit:
            return True
        held = self.held + _change(action)
        for other in self.pending:
            if other == action or held > limit:
                break
            held += _change(other)
        return held <= limit

    def _delays_first(self, action: Action, end: float) -> bool:
        """Tell whether the action would still run when the first one in priority order could start."""
        first = self.pending[0]
        return action != first and self.ready.get(first, float("inf")) < end - _NOW


def reorder(
    table: Table, costs: Costs, *, limit: float = float("inf"), in_flight: int | None = None, patient: bool = False
) -> Table:
    """Return the table with each stage's actions in the order that list scheduling runs them.

    With `patient` an action does not overtake the first one in priority order if that one becomes ready meanwhile.
    """
    stages = [_Stage.of(actions) for actions in table.stages]
    waiting, consumers = _dependencies(table, in_flight)
    events = [0.0]
    for entry in [action for action, needs in waiting.items() if not needs]:
        stages[table.home(entry)].ready[entry] = 0.0
    arrivals: dict[Action, float] = defaultdict(float)
    while events:
        now = _next(events)
        for home, stage in enumerate(stages):
            action = stage.choose(now, limit, patient, costs) if stage.free_at <= now + _NOW else None
            if action is None:
                continue
            end = now + costs.of(action)
            stage.take(action, end)
            heapq.heappush(events, end)
            for consumer in consumers[result(action)]:
                target = table.home(consumer)
                arrivals[consumer] = max(arrivals[consumer], end + costs.transfer * (target != home))
                waiting[consumer] -= 1
                if not waiting[consumer]:
                    stages[target].ready[consumer] = arrivals[consumer]
                    heapq.heappush(events, arrivals[consumer])
    if any(stage.pending for stage in stages):
        raise ValueError(
            f"memory_limit={limit:g} activations a stage: no order of this schedule keeps so few; raise it"
        )
    return of_stages(table.placement, (stage.order for stage in stages), table.routes)


def _dependencies(table: Table, in_flight: int | None) -> tuple[dict[Action, int], dict[Action | None, list[Action]]]:
    """Return how many results each action waits for, and which actions wait for each result."""
    waiting: dict[Action, int] = {}
    consumers: dict[Action | None, list[Action]] = defaultdict(list)
    entry = _entry_gates(table, in_flight)
    for actions in table.stages:
        for action in actions:
            needs = table.needs(action) + entry.get(action, ())
            waiting[action] = len(needs)
            for need in needs:
                consumers[need].append(action)
    return waiting, consumers


def _entry_gates(table: Table, in_flight: int | None) -> dict[Action, tuple[Action, ...]]:
    """Return, for the first F of each microbatch, the last B of the microbatch that has to leave before it."""
    if in_flight is None:
        return {}
    entered: dict[int, list[int]] = defaultdict(list)
    gates: dict[Action, tuple[Action, ...]] = {}
    for microbatch, route in enumerate(table.routes):
        before = entered[route]
        if len(before) >= in_flight:
            gates[Action(Unit.FORWARD, microbatch, 0)] = (backward(before[-in_flight], 0),)
        before.append(microbatch)
    return gates


def _next(events: list[float]) -> float:
    """Remove the next event and those equal to it; return the time of the last."""
    now = heapq.heappop(events)
    while events and events[0] <= now + _NOW:
        now = max(now, heapq.heappop(events))
    return now


def _change(action: Action) -> int:
    return action.starts_activation - action.ends_activation
