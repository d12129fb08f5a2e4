"""`jaxtrain plot RUN...`: loss, learning rate, gradient norm and throughput of one or several runs, as one picture.

Only metrics.jsonl is read, so a run may still be training, and its checkpoints may be gone. The training loss is drawn
twice: as measured, in a faint line, and as a centred moving average over about a fiftieth of the run.
"""

import argparse
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.typing import ColorType

from jaxtrain.cli.bigram_record import kept
from jaxtrain.cli.neighbours import check_exists
from jaxtrain.cli.plot_experts import draw_experts
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import read_metrics

VALIDATION = "validation_loss"
AVERAGE_MARKERS = {"ema": "D", "lawa": "^"}
GREY = "0.35"
LONGEST_NAME = 100  # most characters of a file name made of all names; a longer one is shortened
STYLE: dict[str, dict[str, Any]] = {
    "grid": {"color": "0.9", "linewidth": 0.8},
    "raw": {"linewidth": 0.6, "alpha": 0.28},
    "smooth": {"linewidth": 1.8},
    "bigram": {"linewidth": 1.2, "linestyle": (0, (5, 3))},
}


def run(arguments: argparse.Namespace) -> int:
    folders = [Path(folder) for folder in arguments.runs]
    if arguments.experts:
        default, figure = folders[0] / "experts.png", draw_experts(folders)
    else:
        default = default_picture(folders)
        figure = draw([read_curves(folder, name) for folder, name in zip(folders, names(folders), strict=True)])
    out = Path(arguments.out) if arguments.out else default
    out = out if out.suffix else out.with_suffix(".png")
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Letters of a run's name that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, dpi=150)
    print(f"wrote {out}")
    return 0


def default_picture(folders: Sequence[Path]) -> Path:
    """Return the path of the picture: plot.png in a single run, or the names of several runs in their common folder."""
    if len(folders) == 1:
        return folders[0] / "plot.png"
    parts = [name.replace("/", "-") for name in names(folders)]
    joined = "+".join(parts)
    short = joined if len(joined) <= LONGEST_NAME else f"{parts[0]}+{len(parts) - 1}"
    path = shared_folder(folders) / f"{short}.png"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class Series(NamedTuple):
    """A number of a run, at the steps where it was measured."""

    steps: np.ndarray
    values: np.ndarray


class Curves(NamedTuple):
    """The series of a run. `validation` maps a metric (validation_loss, validation_loss_ema, ...) to its series."""

    name: str
    loss: Series
    validation: dict[str, Series]
    learning_rate: Series
    gradient_norm: Series
    tokens_per_second: Series
    bigram: float | None


def read_curves(folder: Path, name: str) -> Curves:
    """Return the curves of a run folder.

    Raises:
        ValueError: the folder has no metrics of a step yet, or they cannot be read.
    """
    check_exists(folder)
    path = RunFolder(folder).metrics
    if not path.is_file():
        raise ValueError(f"{folder}: nothing to plot, there is no {path.name} in it; name the folder of a run")
    records = read_metrics(path)
    loss = _series(records, "loss")
    if not len(loss.steps):
        raise ValueError(f"{path} has no step yet: wait until the run has made one, then plot again")
    kinds = dict.fromkeys(key for record in records for key in record if key.startswith(VALIDATION))
    return Curves(
        name=name,
        loss=loss,
        validation={kind: _series(records, kind) for kind in sorted(kinds)},
        learning_rate=_series(records, "learning_rate"),
        gradient_norm=_series(records, "gradient_norm"),
        tokens_per_second=_series(records, "tokens_per_second"),
        bigram=kept(records),
    )


def _series(records: Sequence[dict], key: str) -> Series:
    found = [(record["step"], record[key]) for record in records if key in record]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return Series(np.array(steps, int), np.array(values, float))


def names(folders: Sequence[Path]) -> list[str]:
    """Return short distinct names of runs: their paths below their common folder."""
    shared = shared_folder(folders)
    return [folder.resolve().relative_to(shared).as_posix() for folder in folders]


def shared_folder(folders: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([folder.resolve().parent for folder in folders]))


def smoothed(values: np.ndarray, window: float) -> np.ndarray:
    """Return the average of every value and its neighbours, whose weight is e^(-2 distance / window), on both sides.

    So it does not lag behind. A value that is not finite (of a skipped step) does not change it.
    """
    finite = np.isfinite(values)
    filled, ones = np.where(finite, values, 0.0), finite.astype(float)
    total, weight = (_to_both_sides(x, math.exp(-2 / window)) for x in (filled, ones))
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


def _to_both_sides(values: np.ndarray, keep: float) -> np.ndarray:
    """Return sum_j keep^|i - j| values[j] for every i."""
    ahead, behind = np.array(values), np.array(values)
    for i in range(1, len(values)):
        ahead[i] += keep * ahead[i - 1]
        behind[-1 - i] += keep * behind[-i]
    return ahead + behind - values


def draw(runs: Sequence[Curves]) -> Figure:
    """Return the picture: loss above, learning rate, gradient norm and throughput below, one colour for each run."""
    figure = Figure(figsize=(11, 7.5), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 3, height_ratios=(2.2, 1))
    loss = figure.add_subplot(grid[0, :])
    rate, norm, speed = (figure.add_subplot(grid[1, column], sharex=loss) for column in range(3))
    colors = [colormaps["tab10"](i % 10) for i in range(len(runs))]
    for curves, color in zip(runs, colors, strict=True):
        _draw_loss(loss, curves, color)
        rate.plot(*curves.learning_rate, color=color, **STYLE["smooth"])
        _draw_smoothed(norm, curves.gradient_norm, color)
        _draw_smoothed(speed, curves.tokens_per_second, color)
    _draw_bigrams(loss, runs, colors)
    loss.set_ylim(_loss_limits(runs))
    norm.set_ylim(0, 1.1 * _late_range([curves.gradient_norm for curves in runs])[1])
    speed.set_ylim(bottom=0)
    rate.set_ylim(bottom=0)
    _label(loss, "loss", "nats a token")
    _label(rate, "learning rate", "")
    _label(norm, "gradient norm", "before clipping")
    _label(speed, "throughput", "tokens a second")
    rate.yaxis.set_major_formatter("{x:g}")
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    _add_legends(figure, loss, runs, colors)
    return figure


def _draw_loss(axes: Axes, curves: Curves, color: ColorType) -> None:
    _draw_smoothed(axes, curves.loss, color)
    for kind, points in curves.validation.items():
        axes.plot(*points, color=color, zorder=4, **_point_style(kind, color))


def _point_style(kind: str, color: ColorType) -> dict[str, Any]:
    """Return the style of a validation metric: a full dot, or for averages a larger hollow mark, drawn around a dot."""
    if kind == VALIDATION:
        return {"marker": "o", "markersize": 6, "markeredgecolor": "white", "linestyle": "none"}
    marker = AVERAGE_MARKERS.get(kind.removeprefix(f"{VALIDATION}_"), "s")
    return {"marker": marker, "markersize": 9, "markeredgecolor": color, "fillstyle": "none", "linestyle": "none"}


def _draw_smoothed(axes: Axes, series: Series, color: ColorType) -> None:
    axes.plot(*series, color=color, **STYLE["raw"])
    axes.plot(series.steps, smoothed(series.values, _window(series)), color=color, zorder=3, **STYLE["smooth"])


def _window(series: Series) -> float:
    return max(len(series.steps) / 50, 1)


def _draw_bigrams(axes: Axes, runs: Sequence[Curves], colors: Sequence[ColorType]) -> None:
    """Draw the bigram losses as horizontal lines: one grey line if all are equal, or else one in each run's colour."""
    known = [(curves.bigram, color) for curves, color in zip(runs, colors, strict=True) if curves.bigram is not None]
    same = len({bigram for bigram, _ in known}) == 1
    for bigram, color in known[:1] if same else known:
        axes.axhline(bigram, color=GREY if same else color, zorder=2, **STYLE["bigram"])


def _loss_limits(runs: Sequence[Curves]) -> tuple[float, float]:
    """Return the limits of the loss axis."""
    points = [series.values for curves in runs for series in curves.validation.values()]
    bigrams = [curves.bigram for curves in runs if curves.bigram is not None]
    low, high = _late_range([curves.loss for curves in runs], *points, bigrams)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _late_range(measured: Sequence[Series], *others: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the range of smoothed series and of other values.

    The first twentieth of a series is left out, as the steep change there would flatten the rest.
    """
    shown = [smoothed(series.values, _window(series)) for series in measured]
    return _range(np.concatenate([*(values[len(values) // 20 :] for values in shown), *others]))


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel("step", color=GREY)
    axes.set_ylabel(unit, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(**STYLE["grid"])
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.7")
    axes.tick_params(color="0.7", labelcolor="0.25")


def _add_legends(figure: Figure, loss: Axes, runs: Sequence[Curves], colors: Sequence[ColorType]) -> None:
    """Add a legend of line kinds to the loss, and a legend of the runs above the figure. A single run is its title."""
    color = colors[0] if len(runs) == 1 else GREY
    loss.legend(handles=_kinds(runs, color), loc="upper right", frameon=True, edgecolor="0.9", fontsize=10)
    if len(runs) == 1:
        figure.suptitle(runs[0].name, fontsize=14, parse_math=False)
        return
    handles = [Line2D([], [], color=c, linewidth=3, label=r.name) for r, c in zip(runs, colors, strict=True)]
    legend = figure.legend(
        handles=handles, loc="outside upper center", ncols=min(len(runs), 4), frameon=False, fontsize=11
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a path may contain $, which does not begin a formula


def _kinds(runs: Sequence[Curves], color: ColorType) -> list[Line2D]:
    """Return the entries of the legend of line kinds."""
    handles = [
        Line2D([], [], color=color, label="train, smoothed", **STYLE["smooth"]),
        Line2D([], [], color=color, label="train, each step", **STYLE["raw"] | {"alpha": 0.5, "linewidth": 1}),
    ]
    for kind in dict.fromkeys(kind for curves in runs for kind in curves.validation):
        label = "validation" + kind.removeprefix(VALIDATION).replace("_", ", ", 1)
        handles.append(Line2D([], [], color=color, label=label, **_point_style(kind, color)))
    bigrams = {curves.bigram for curves in runs if curves.bigram is not None}
    if bigrams:
        values = ", ".join(f"{bigram:.3f}" for bigram in sorted(bigrams))
        handles.append(Line2D([], [], color=GREY, label=f"bigram model, {values}", **STYLE["bigram"]))
    return handles
