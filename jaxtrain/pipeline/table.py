"""A pipeline schedule as data: for every stage, the ordered list of what it computes.

Units are F (forward of one microbatch through one chunk), B (gradient to the chunk's input), W (gradient to its
weights) and BW (B and W fused, where a schedule does not split the backward: the next stage waits for all of it). A
table says in which order each stage runs its units, not when. The simulator adds times; `pack` adds the ticks of one
compiled loop.

Text form, one line a stage, microbatch.chunk, after a header with the stage of every chunk:

    chunks: 0 1
    stage 0: F0.0 F1.0 BW0.0 BW1.0
    stage 1: F0.1 BW0.1 F1.1 BW1.1

With two weight copies the header reads `chunks: 0 1 / 1 0`, and a line `routes: 0 0 1 1` names the copy that each
microbatch travels on. `#` starts a comment.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from jaxtrain.pipeline.placement import Placement

NUMBER = "[0-9]{1,18}"


class Unit(StrEnum):
    """What an action computes."""

    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"
    FUSED = "BW"


class Action(NamedTuple):
    """One unit of one microbatch on one chunk."""

    unit: Unit
    microbatch: int
    chunk: int

    def __str__(self) -> str:
        return f"{self.unit}{self.microbatch}.{self.chunk}"

    @property
    def starts_activation(self) -> bool:
        """The stage keeps this chunk's activations from here on."""
        return self.unit == Unit.FORWARD

    @property
    def ends_activation(self) -> bool:
        """From here on nothing needs this chunk's activations: the weight gradient is done."""
        return self.unit in (Unit.WEIGHT, Unit.FUSED)

    @property
    def sends_gradient(self) -> bool:
        """Computes the gradient that the previous chunk waits for."""
        return self.unit in (Unit.BACKWARD, Unit.FUSED)


def forward(microbatch: int, chunk: int) -> Action:
    return Action(Unit.FORWARD, microbatch, chunk)


def backward(microbatch: int, chunk: int) -> Action:
    return Action(Unit.BACKWARD, microbatch, chunk)


def weight(microbatch: int, chunk: int) -> Action:
    return Action(Unit.WEIGHT, microbatch, chunk)


def fused(microbatch: int, chunk: int) -> Action:
    return Action(Unit.FUSED, microbatch, chunk)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Per-stage action lists, where each chunk lives, and on which weight copy each microbatch travels."""

    placement: Placement
    routes: tuple[int, ...]
    stages: tuple[tuple[Action, ...], ...]

    @property
    def microbatches(self) -> int:
        return len(self.routes)

    @property
    def split(self) -> bool:
        """Whether some backward is split into B and W."""
        return any(action.unit == Unit.WEIGHT for actions in self.stages for action in actions)

    def home(self, action: Action) -> int:
        """Return the stage that has to run this action."""
        return self.placement.stage(action.chunk, self.routes[action.microbatch])

    def needs(self, action: Action) -> tuple[Action, ...]:
        """Return the actions whose results this one reads. B of the next chunk stands for BW, too."""
        unit, microbatch, chunk = action
        if unit == Unit.FORWARD:
            return (forward(microbatch, chunk - 1),) if chunk else ()
        if unit == Unit.WEIGHT:
            return (backward(microbatch, chunk),)
        own = forward(microbatch, chunk)
        return (own,) if chunk == self.placement.chunks - 1 else (own, backward(microbatch, chunk + 1))

    def dump(self) -> str:
        """Return the text form."""
        chunks = " / ".join(" ".join(map(str, home)) for home in self.placement.homes)
        routes = [f"routes: {' '.join(map(str, self.routes))}"] if self.placement.replicas > 1 else []
        rows = [f"stage {stage}: {' '.join(map(str, actions))}" for stage, actions in enumerate(self.stages)]
        return "\n".join([f"chunks: {chunks}", *routes, *rows]) + "\n"

    @classmethod
    def load(cls, text: str) -> Self:
        """Parse the text form. The result is not validated: see `validation.validate`."""
        lines = _lines(text)
        if "chunks" not in lines:
            raise ValueError("a schedule table starts with the stage of every chunk, such as `chunks: 0 1 2 3`")
        homes = tuple(_numbers("chunks", home) for home in lines.pop("chunks").split("/"))
        routes = _numbers("routes", lines.pop("routes")) if "routes" in lines else None
        placement = Placement(stages=len({stage for home in homes for stage in home}), homes=homes)
        unknown = set(lines) ^ {f"stage {stage}" for stage in range(placement.stages)}
        if unknown:
            raise ValueError(
                f"lines {sorted(unknown)}: missing or unknown; expected `stage 0:` to `stage {placement.stages - 1}:`"
            )
        stages = tuple(_actions(f"stage {stage}", lines[f"stage {stage}"]) for stage in range(placement.stages))
        count = count_microbatches(stages)
        return cls(placement=placement, routes=routes or (0,) * count, stages=stages)


def of_stages(placement: Placement, stages: Iterable[Iterable[Action]], routes: Iterable[int] = ()) -> Table:
    """Build a table; without routes, every microbatch travels on the only weight copy."""
    rows = tuple(tuple(actions) for actions in stages)
    count = 1 + max(action.microbatch for actions in rows for action in actions)
    return Table(placement=placement, routes=tuple(routes) or (0,) * count, stages=rows)


def _lines(text: str) -> dict[str, str]:
    """Return the entries of every line by its name."""
    found: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not _content(line):
            continue
        name, entries = _split(number, line)
        if name in numbers:
            raise ValueError(f"line {number}: `{name}:` stands on line {numbers[name]} already; remove one of the two")
        found[name], numbers[name] = entries, number
    return found


def count_microbatches(stages: Iterable[Iterable[Action]]) -> int:
    """Return the number of microbatches. Raises ValueError if there are none, or if a number is left out."""
    found = {action.microbatch for actions in stages for action in actions}
    if not found:
        raise ValueError("the table has no actions; write them behind the stages, such as `stage 0: F0.0 BW0.0`")
    if found != set(range(len(found))):
        missing = min(set(range(len(found))) - found)
        raise ValueError(
            f"microbatch {max(found)} without microbatch {missing}: they are numbered from 0, without gaps; "
            f"nearest {missing}"
        )
    return len(found)


def _content(line: str) -> str:
    return line.split("#")[0].strip()


def _split(number: int, line: str) -> tuple[str, str]:
    name, colon, rest = _content(line).partition(":")
    if not colon:
        raise ValueError(
            f"line {number} is `{line.strip()}`; expected `chunks:`, `routes:` or `stage N:` before its entries"
        )
    return " ".join(name.split()), rest.strip()


def _numbers(name: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(rf"{NUMBER}(\s+{NUMBER})*", text.strip()):
        raise ValueError(f"`{name}: {text}` must be whole numbers of at most 18 digits, separated by spaces")
    return tuple(map(int, text.split()))


def _actions(name: str, text: str) -> tuple[Action, ...]:
    return tuple(_action(name, word) for word in text.split())


def _action(name: str, word: str) -> Action:
    match = re.fullmatch(rf"(F|BW|B|W)({NUMBER})\.({NUMBER})", word)
    if not match:
        raise ValueError(f"{name}: `{word}` is no action; expected F, B, W or BW, then microbatch.chunk, such as F3.0")
    return Action(Unit(match[1]), int(match[2]), int(match[3]))
