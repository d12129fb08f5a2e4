"""Draw a simulated schedule in the terminal: one row a stage, time to the right, the microbatch's number in each
action.

Hue says what is computed, depth which of the stage's chunks (the first lightest). What is left open is the bubble.
`picture` draws the same as PNG and SVG.
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
    Unit.FUSED: ((168, 226, 196), (18, 120, 84)),
}
BUBBLE: Color = (224, 96, 96)


def grid(table: Table, simulation: Simulation, *, width: int, letters: bool) -> Group:
    """The timelines and a legend, folded where they are wider than `width`; `letters` for places without colour."""
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
    """What the colours mean, of the units this table has."""
    line = Text()
    for unit in units(table):
        line.append(f" {unit} ", style=f"black on {_style(mix(*HUES[unit], 0.3))}").append(f" {NAMES[unit]}   ")
    line.append("···", style=_style(BUBBLE)).append(" waiting")
    return line.append("   deeper: later chunk") if len(table.placement.held[0]) > 1 else line


def units(table: Table) -> list[Unit]:
    """The units that occur, in the order of `Unit`."""
    used = {action.unit for actions in table.stages for action in actions}
    return [unit for unit in Unit if unit in used]


def color(table: Table, action: Action) -> Color:
    """Hue by unit, depth by the chunk's place among those its stage holds."""
    held = table.placement.held[table.home(action)]
    place = held.index((table.routes[action.microbatch], action.chunk))
    return mix(*HUES[action.unit], place / (len(held) - 1) if len(held) > 1 else 0.4)


def ink(fill: Color) -> Color:
    """Black on light fills, white on deep ones."""
    return (0, 0, 0) if sum(fill) > 380 else (255, 255, 255)


def mix(light: Color, deep: Color, depth: float) -> Color:
    red, green, blue = (round(a + (b - a) * depth) for a, b in zip(light, deep, strict=True))
    return red, green, blue


def _columns_per_time(table: Table, simulation: Simulation, letters: bool) -> float:
    """Columns that let the shortest action show its microbatch and a gap."""
    shortest = min(span.end - span.start for spans in simulation.timelines for span in spans)
    name = len(str(table.microbatches - 1)) + (max(map(len, units(table))) if letters else 0)
    return (name + 1) / shortest


def _row(table: Table, spans: Sequence[Span], scale: float, total: int, letters: bool) -> Text:
    row = Text()
    for action, start, end in spans:
        first, after = round(start * scale), round(end * scale)
        row.append("·" * (first - len(row)), style=_style(BUBBLE))
        name = f"{action.unit if letters else ''}{action.microbatch}"
        fill = color(table, action)
        row.append(name.rjust(after - first), style=f"{_style(ink(fill))} on {_style(fill)}")
    return row.append("·" * (total - len(row)), style=_style(BUBBLE))


def _style(rgb: Color) -> str:
    return "rgb({},{},{})".format(*rgb)
