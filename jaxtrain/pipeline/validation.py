"""Proof that a table can run: every unit once, on the right stage, inputs before use, no deadlock.

`walk` is the one traversal of a table. It yields the actions in an order in which all inputs exist. If no stage can go
on, it raises with the reason. The simulator and the tick packing use it, too.
"""

from collections import Counter
from collections.abc import Iterator

from jaxtrain.pipeline.table import Action, Table, Unit, backward


def result(action: Action) -> Action | None:
    """Return what other actions wait for, as `Table.needs` names it: B for BW, too; None for W."""
    if action.unit == Unit.WEIGHT:
        return None
    return backward(action.microbatch, action.chunk) if action.sends_gradient else action


def walk(table: Table) -> Iterator[tuple[int, Action]]:
    """Yield (stage, action) so that each action follows what it needs.

    Raises:
        ValueError: all stages wait.
    """
    done: set[Action | None] = set()
    position = [0] * table.placement.stages
    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(table.stages):
            while position[stage] < len(actions) and done.issuperset(table.needs(actions[position[stage]])):
                action = actions[position[stage]]
                yield stage, action
                done.add(result(action))
                position[stage] += 1
                moved = True
    waiting = [
        f"stage {stage} at {actions[at]} waits for {_missing(table, actions[at], done)}"
        for stage, (actions, at) in enumerate(zip(table.stages, position, strict=True))
        if at < len(actions)
    ]
    if waiting:
        raise ValueError(f"the schedule deadlocks: {'; '.join(waiting)}; move what is waited for before what waits")


def validate(table: Table) -> Table:
    """Return the table.

    Raises:
        ValueError: the table cannot run; with the action and the rule it breaks.
    """
    _check_routes(table)
    _check_homes(table)
    _check_once(table)
    _check_busy(table)
    for _ in walk(table):
        pass
    return table


def _missing(table: Table, action: Action, done: set[Action | None]) -> str:
    return " and ".join(str(need) for need in table.needs(action) if need not in done)


def _check_routes(table: Table) -> None:
    replicas = table.placement.replicas
    if not table.routes or not set(table.routes) <= set(range(replicas)):
        raise ValueError(
            f"routes={table.routes}: each microbatch must name one of the {replicas} weight copies, from 0"
        )


def _check_homes(table: Table) -> None:
    chunks, count = table.placement.chunks, table.microbatches
    for stage, actions in enumerate(table.stages):
        for action in actions:
            if action.chunk >= chunks or action.microbatch >= count:
                raise ValueError(
                    f"stage {stage}: {action} is out of range: {count} microbatches, {chunks} chunks, from 0"
                )
            if table.home(action) != stage:
                raise ValueError(
                    f"stage {stage}: {action} belongs on stage {table.home(action)}, which holds the chunk"
                )


def _check_once(table: Table) -> None:
    counts = Counter(action for actions in table.stages for action in actions)
    for microbatch in range(table.microbatches):
        for chunk in range(table.placement.chunks):
            found = {unit: counts[Action(unit, microbatch, chunk)] for unit in Unit}
            split = found == {Unit.FORWARD: 1, Unit.BACKWARD: 1, Unit.WEIGHT: 1, Unit.FUSED: 0}
            whole = found == {Unit.FORWARD: 1, Unit.BACKWARD: 0, Unit.WEIGHT: 0, Unit.FUSED: 1}
            if not split and not whole:
                has = ", ".join(f"{number} {unit}" for unit, number in found.items() if number) or "nothing"
                raise ValueError(
                    f"microbatch {microbatch}, chunk {chunk} has {has}; every microbatch passes every chunk with "
                    f"one F and either one BW or one B and one W"
                )


def _check_busy(table: Table) -> None:
    for stage, actions in enumerate(table.stages):
        if not actions:
            raise ValueError(
                f"stage {stage} has no actions: no microbatch travels on a weight copy that has a chunk there; "
                "change the routes or the chunks"
            )
