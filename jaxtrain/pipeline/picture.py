"""Draw a simulated schedule as PNG, SVG or another format of matplotlib."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from jaxtrain.pipeline.draw import BUBBLE, HUES, NAMES, Color, color, ink, mix, name, notes, units
from jaxtrain.pipeline.simulator import Simulation, Span
from jaxtrain.pipeline.table import Table

_FORMATS = {".png", ".svg", ".pdf"}


def save(table: Table, simulation: Simulation, path: Path, *, title: str) -> None:
    """Write the timelines; the path's ending chooses the format."""
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path}: a picture's name ends in one of {', '.join(sorted(_FORMATS))}")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    picture(table, simulation, title=title).savefig(path, dpi=160, metadata=metadata)


def picture(table: Table, simulation: Simulation, *, title: str) -> Figure:
    """The figure, which a notebook shows as it is."""
    stages = len(table.stages)
    actions = simulation.makespan / min(span.end - span.start for line in simulation.timelines for span in line)
    width = min(36.0, max(8.0, 0.24 * actions + 1.0))
    figure = Figure(figsize=(width, 0.36 * stages + 1.5), layout="constrained")
    axes = figure.add_subplot()
    for stage, line in enumerate(simulation.timelines):
        axes.add_patch(_waiting(stage, simulation.makespan))
        for span in line:
            _draw(axes, table, stage, span, 72 * (width - 1) / simulation.makespan)
    axes.set(xlim=(0, simulation.makespan), ylim=(stages - 0.45, -0.55), xlabel="time", yticks=range(stages))
    axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)])
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(handles=_patches(table), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _draw(axes: Axes, table: Table, stage: int, span: Span, points_per_time: float) -> None:
    fill, length = color(table, span.action), span.end - span.start
    axes.add_patch(
        Rectangle((span.start, stage - 0.45), length, 0.9, facecolor=_unit(fill), edgecolor="white", linewidth=0.8)
    )
    label = name(table, span.action)
    size = min(8.0, 1.4 * points_per_time * length / len(label))
    if size >= 3:
        middle = (span.start + length / 2, stage)
        axes.annotate(label, middle, ha="center", va="center_baseline", fontsize=size, color=_unit(ink(fill)))


def _waiting(stage: int, makespan: float) -> Rectangle:
    faint = mix((255, 255, 255), BUBBLE, 0.5)
    return Rectangle(
        (0, stage - 0.45), makespan, 0.9, facecolor=_unit(mix((255, 255, 255), BUBBLE, 0.1)), edgecolor=_unit(faint),
        hatch="////", linewidth=0,
    )  # fmt: skip


def _patches(table: Table) -> list[Patch]:
    named = [Patch(facecolor=_unit(mix(*HUES[unit], 0.4)), label=f"{unit}: {NAMES[unit]}") for unit in units(table)]
    faint = mix((255, 255, 255), BUBBLE, 0.5)
    idle = mix((255, 255, 255), BUBBLE, 0.1)
    return [
        *named,
        *(Patch(alpha=0, label=note) for note in notes(table)),
        Patch(facecolor=_unit(idle), edgecolor=_unit(faint), hatch="////", linewidth=0, label="idle"),
    ]


def _unit(color: Color) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255
