"""`jaxtrain plot RUN --experts`: the load of each expert of each layer over the steps, and experts that go together.

Reads what the hook `RouterReport` wrote to the run. A load is drawn over the mean load of its layer. Co-activation is
that of the latest count: the share of an expert's tokens that have another, as in Kang et al. (2025), arXiv:2505.20225.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from jaxtrain.cli.neighbours import check_exists
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import read_metrics
from jaxtrain.train.routed import Counted, read

MOST_PAIRS = 4  # layers whose pairs of experts are drawn: the first, the last, and some between
MOST_NAMED = 12  # layers that have their names beside them
FULL = 2.0  # the load, over the mean, of the darkest colour, where none is greater
MOST_ROWS = 400  # of the picture of loads, so that each can be seen
NUMBERS = {
    "validation_router_entropy_": "entropy of the router, nats",
    "validation_moved_by_bfloat16_": "tokens that bfloat16 would move",
    "validation_dropped_": "choices dropped",
}


class Routed(NamedTuple):
    """The counts of a run by step, and the numbers of its layers: by kind, by layer, steps and values.

    Counts of other experts than the latest, as of an earlier phase, are left out, and so are numbers of other layers.
    """

    name: str
    counts: Mapping[int, Mapping[str, Counted]]
    numbers: Mapping[str, Mapping[str, tuple[list[int], list[float]]]]


def draw_experts(folders: Sequence[Path]) -> Figure:
    """Return the picture of a run.

    Raises:
        ValueError: there are several runs, or this one has no counts.
    """
    if len(folders) > 1:
        raise ValueError(f"--experts: draws one run, and {len(folders)} are given; name one")
    return draw(read_routed(folders[0]))


def read_routed(folder: Path) -> Routed:
    check_exists(folder)
    run = RunFolder(folder)
    files = run.routing_files()
    if not files:
        raise ValueError(
            f"{folder}: no counts of experts in it; train a mixture with the hook RouterReport, "
            "--set hooks.3='@RouterReport(every_steps=50)'"
        )
    records = read_metrics(run.metrics)
    numbers: dict[str, dict[str, tuple[list[int], list[float]]]] = {kind: {} for kind in NUMBERS}
    for record in records:
        for kind in NUMBERS:
            for key in (key for key in record if key.startswith(kind)):
                steps, values = numbers[kind].setdefault(key.removeprefix(kind), ([], []))
                steps.append(record["step"])
                values.append(record[key])
    counts = {step: read(path) for step, path in files.items()}
    last = _sizes(counts[max(counts)])
    of_layers = {kind: {layer: own[layer] for layer in last if layer in own} for kind, own in numbers.items()}
    return Routed(folder.resolve().name, {s: own for s, own in counts.items() if _sizes(own) == last}, of_layers)


def _sizes(counts: Mapping[str, Counted]) -> dict[str, int]:
    return {layer: len(own["load"]) for layer, own in counts.items()}


def loads(counts: Mapping[int, Mapping[str, Counted]], layer: str) -> np.ndarray:
    """Return the loads of a layer over their mean, [experts, steps]."""
    each = [of_step[layer]["load"] for of_step in counts.values()]
    return np.stack([load / max(load.mean(), 1e-9) for load in each], axis=1)


def together(own: Counted) -> np.ndarray:
    """Return the co-activation: the share of an expert's tokens (row) that also have another (column), not itself."""
    pairs = own["together"]
    shares = pairs / np.maximum(np.diag(pairs), 1.0)[:, None]
    np.fill_diagonal(shares, np.nan)
    return shares


def draw(run: Routed) -> Figure:
    """Return the picture: loads above, pairs of experts in the middle, numbers of the layers below."""
    last = run.counts[max(run.counts)]
    figure = Figure(figsize=(11, 10), layout="constrained", facecolor="white")
    ((above,), (middle,), (below,)) = figure.subfigures(3, 1, squeeze=False, height_ratios=(2, 1.2, 1))
    _draw_loads(above, run, list(last))
    shown = _spread(list(last), MOST_PAIRS)
    pairs = {layer: together(last[layer]) for layer in shown}
    most = max(float(np.max(own, where=~np.isnan(own), initial=0.0)) for own in pairs.values()) or 1.0
    panels = middle.subplots(1, len(shown), squeeze=False)[0]
    for axes, (layer, own) in zip(panels, pairs.items(), strict=True):
        image = axes.imshow(own, cmap="viridis", vmin=0.0, vmax=most, interpolation="nearest")
        _label(axes, f"co-activation, layer {layer}", "also has expert", "tokens of expert")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    middle.colorbar(image, ax=list(panels), shrink=0.8)
    for axes, (kind, title) in zip(below.subplots(1, len(NUMBERS)), NUMBERS.items(), strict=True):
        for layer, points in run.numbers[kind].items():
            axes.plot(*points, marker="o", markersize=3, label=f"layer {layer}")
        axes.set_ylim(bottom=0)
        _label(axes, title, "step", "")
    drawn, names = below.axes[0].get_legend_handles_labels()
    if 0 < len(names) <= MOST_NAMED:
        below.legend(drawn, names, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(run.name, fontsize=14, parse_math=False)
    return figure


def _draw_loads(figure: SubFigure, run: Routed, layers: Sequence[str]) -> None:
    """Draw a column for each count, and in it a row for each expert, layer below layer."""
    axes = figure.subplots()
    steps = list(run.counts)
    each, group = fullest_of_groups([loads(run.counts, layer) for layer in layers])
    drawn = np.concatenate(each)
    scale = TwoSlopeNorm(1.0, vmin=0.0, vmax=max(FULL, drawn.max()))
    image = axes.imshow(drawn, cmap="RdBu_r", norm=scale, aspect="auto", interpolation="nearest")
    ends = np.cumsum([len(own) for own in each])
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="black", linewidth=1.0)
    middles = ends - np.array([len(own) for own in each]) / 2 - 0.5
    named = _spread(range(len(layers)), MOST_NAMED)
    axes.set_yticks(middles[named], [f"layer {layers[index]}" for index in named])
    shown = _spread(range(len(steps)), 10)
    axes.set_xticks(shown, [str(steps[index]) for index in shown])
    of = "each expert" if group == 1 else f"the fullest of each {group} experts"
    axes.set_title(f"load of {of} over the mean of its layer", loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("step", color="0.35")
    figure.colorbar(image, ax=axes)


def fullest_of_groups(loads: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Return the greatest load of every so many neighbours of a layer, [groups, steps], and how many these are."""
    group = -(-sum(map(len, loads)) // MOST_ROWS)
    return [np.maximum.reduceat(own, np.arange(0, len(own), group), axis=0) for own in loads], group


def _label(axes: Axes, title: str, across: str, upwards: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(across, color="0.35")
    axes.set_ylabel(upwards, color="0.35")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _spread[T](items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]
