"""The picture of a sweep: the loss by the values of one key on the left, the training losses on the right."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxtrain.cli.sweep_grid import Axis, Point
from jaxtrain.cli.sweep_results import Outcome, measures

STYLES = ("-", "--", ":", "-.")
MOST_BINS = 100  # points of a curve: each is a mean over as many steps
MOST_NAMES = 16  # entries of the legend
WIDE = 10  # values whose ratio is greater are drawn on a logarithmic axis


def write_picture(path: Path, axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[Outcome]) -> None:
    with warnings.catch_warnings():
        # Letters of a value that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        draw(axes, points, outcomes).savefig(path, dpi=150)


def draw(axes: Sequence[Axis], points: Sequence[Point], outcomes: Sequence[Outcome]) -> Figure:
    """Return the picture. A run has one colour in both halves. Runs that differ in one key are joined by a line."""
    figure = Figure(figsize=(12, 5), layout="constrained", facecolor="white")
    by_value, by_step = figure.subplots(1, 2)
    colors = [colormaps["viridis"](index / max(len(points) - 1, 1)) for index in range(len(points))]
    across = _across(axes)
    measure, values = measures(outcomes)
    places = _places(by_value, axes[across])
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, point in enumerate(points):
        groups.setdefault(point.values[:across] + point.values[across + 1 :], []).append(index)
    for number, members in enumerate(groups.values()):
        x = [places[points[index].values[across]] for index in members]
        y = [math.nan if (value := values[index]) is None else value for index in members]
        order = np.argsort(x)
        style = STYLES[number % len(STYLES)]
        by_value.plot(np.array(x)[order], np.array(y)[order], color="0.6", linestyle=style, linewidth=1.2)
        by_value.scatter(x, y, color=[colors[index] for index in members], zorder=3, s=45)
    for found, color in zip(outcomes, colors, strict=True):
        by_step.plot(*_curve(found.losses), color=color, linewidth=1.4)
    by_value.set_xlabel(axes[across].key, parse_math=False)
    by_step.set_xlabel("step")
    for half, title in ((by_value, measure), (by_step, "training loss")):
        half.set_title(f"{title}, nats a token", loc="left", fontsize=12, fontweight="bold")
        half.grid(color="0.9", linewidth=0.8)
        half.set_axisbelow(True)
        half.spines[["top", "right"]].set_visible(False)
    _add_names(figure, [point.name for point in points], colors)
    return figure


def _across(axes: Sequence[Axis]) -> int:
    """Return the axis along which losses are drawn: the first of several numbers, or else the first."""
    several = [index for index, axis in enumerate(axes) if len(axis.values) > 1 and _numbers(axis)]
    return several[0] if several else 0


def _numbers(axis: Axis) -> list[float]:
    """Return the values as numbers; none at all if one of them is no number."""
    try:
        return [float(value) for value in axis.values]
    except ValueError:
        return []


def _places(half: Axes, axis: Axis) -> dict[str, float]:
    """Return where each value stands on the horizontal axis, which is labelled with the values."""
    numbers = _numbers(axis)
    places = numbers or [float(index) for index in range(len(axis.values))]
    if numbers and min(numbers) > 0 and max(numbers) / min(numbers) > WIDE:
        half.set_xscale("log")
    half.set_xticks(places, axis.values, parse_math=False)
    half.minorticks_off()
    return dict(zip(axis.values, places, strict=True))


def _curve(losses: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Return the means of up to MOST_BINS parts of the finite losses."""
    finite = np.array([pair for pair in losses if math.isfinite(pair[1])]).reshape(-1, 2)
    parts = [part.mean(axis=0) for part in np.array_split(finite, min(MOST_BINS, len(finite)) or 1) if len(part)]
    return [float(part[0]) for part in parts], [float(part[1]) for part in parts]


def _add_names(figure: Figure, names: Sequence[str], colors: Sequence) -> None:
    """Add a legend of the runs below the picture, of the first of them if they are many."""
    handles = [
        Line2D([], [], color=color, linewidth=3, label=name)
        for name, color in list(zip(names, colors, strict=True))[:MOST_NAMES]
    ]
    columns = max(1, min(4, 110 // max(len(name) for name in names)))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a value may contain $, which does not begin a formula
