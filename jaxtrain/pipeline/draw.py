"""Draw a simulated schedule in the terminal: one row a stage, time to the right, the microbatch's number in each
action.

The hue is the unit. The depth is the chunk: the first of a stage is the lightest. A prime (`3'`) marks a microbatch on
the second copy of the weights. Dots are idle time, the bubble. `picture` draws the same as PNG and SVG.
"""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from jaxtrain.pipeline.simulator import Simulation, Span
from jaxtrain.pipeline.table import Action, Table, Unit

Color = tuple[int, int, int]

NAMES = {
    Unit.FORWARD: "forward",
    Unit.BACKWARD: "backward to the input",
    Unit.WEIGHT: "backward to the weights",
    Unit.FUSED: "backward",
}
HUES: dict[Unit, tuple[Color, Color]] = {
    Unit.FORWARD: ((176, 208, 250), (34, 92, 184)),
    Unit.BACKWARD: ((168, 226, 196), (18, 120, 84)),
    Unit.WEIGHT: ((252, 220, 146), (198, 122, 0)),
    Unit.FUSED: ((204, 228, 128), (96, 124, 0)),  # between those of its two halves
}
BUBBLE: Color = (224, 96, 96)
_MOST_COLUMNS = 100_000  # a thousand screens


def grid(table: Table, simulation: Simulation, *, width: int, letters: bool) -> Group:
    """Return the timelines and a legend, folded at `width`; `letters` writes the units, for output without colour."""
    scale = _columns_per_time(table, simulation, letters)
    total = math.ceil(round(simulation.makespan * scale, 6))
    rows = [_row(table, spans, scale, total, letters) for spans in simulation.timelines]
    label = len(f"stage {len(rows)} ")
    columns = max(8, width - label)
    lines = []
    for start in range(0, total, columns):
        lines += [Text("")] if start else []
        lines += [Text(f"stage {stage}".ljust(label)) + row[start : start + columns] for stage, row in enumerate(rows)]
    return Group(*lines, Text(""), legend(table))


def legend(table: Table) -> Text:
    """Return what the colours mean, for the units of this table."""
    line = Text()
    for unit in units(table):
        line.append(f" {unit} ", style=f"black on {_style(mix(*HUES[unit], 0.3))}").append(f" {NAMES[unit]}   ")
    line.append("···", style=_style(BUBBLE)).append(" idle")
    return line.append("".join(f"   {note}" for note in notes(table)))


def notes(table: Table) -> list[str]:
    """Return what depth and primes mean, if the table has any."""
    deep = any(len(chunks) > 1 for chunks in _chunks(table))
    return ["deeper: later chunk"] * deep + ["0': on the second weight copy"] * (table.placement.replicas > 1)


def name(table: Table, action: Action) -> str:
    """Return the microbatch's number, with a prime on the second weight copy."""
    return f"{action.microbatch}{chr(39) * table.routes[action.microbatch]}"


def units(table: Table) -> list[Unit]:
    """Return the units that occur, in the order of `Unit`."""
    used = {action.unit for actions in table.stages for action in actions}
    return [unit for unit in Unit if unit in used]


def color(table: Table, action: Action) -> Color:
    """Return the colour: hue by unit, depth by the chunk's index among those of its stage, over both weight copies."""
    chunks = _chunks(table)[table.home(action)]
    return mix(*HUES[action.unit], chunks.index(action.chunk) / (len(chunks) - 1) if len(chunks) > 1 else 0.4)


def ink(fill: Color) -> Color:
    """Return the colour of text: black on light fills, white on deep ones."""
    return (0, 0, 0) if sum(fill) > 380 else (255, 255, 255)


def mix(light: Color, deep: Color, depth: float) -> Color:
    red, green, blue = (round(a + (b - a) * depth) for a, b in zip(light, deep, strict=True))
    return red, green, blue


def _chunks(table: Table) -> list[list[int]]:
    """Return the chunks that each stage holds, in the model's order."""
    return [sorted({chunk for _, chunk in held}) for held in table.placement.held]


def _columns_per_time(table: Table, simulation: Simulation, letters: bool) -> float:
    """Return the columns a unit of time, so many that the shortest action shows its microbatch and a gap.

    Raises:
        ValueError: the timelines would have more than `_MOST_COLUMNS`.
    """
    shortest = min(span.end - span.start for spans in simulation.timelines for span in spans)
    widest = max(len(_text(table, action, letters)) for actions in table.stages for action in actions)
    if not shortest or not (widest + 1) * (simulation.makespan / shortest) <= _MOST_COLUMNS:  # neither inf nor nan
        raise ValueError(
            f"the shortest action takes {shortest:g} of the step's {simulation.makespan:g}, too little to be drawn; "
            "take costs that are less far apart, or fewer microbatches"
        )
    return (widest + 1) / shortest


def _row(table: Table, spans: Sequence[Span], scale: float, total: int, letters: bool) -> Text:
    row = Text()
    for action, start, end in spans:
        first, after = round(start * scale), round(end * scale)
        row.append("·" * (first - len(row)), style=_style(BUBBLE))
        fill = color(table, action)
        row.append(_text(table, action, letters).rjust(after - first), style=f"{_style(ink(fill))} on {_style(fill)}")
    return row.append("·" * (total - len(row)), style=_style(BUBBLE))


def _text(table: Table, action: Action, letters: bool) -> str:
    return f"{action.unit if letters else ''}{name(table, action)}"


def _style(rgb: Color) -> str:
    return "rgb({},{},{})".format(*rgb)
