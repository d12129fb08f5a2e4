"""`jaxtrain plot`: what is drawn, where it is written, and how errors end."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from messages import check

from jaxtrain.cli.main import main
from jaxtrain.cli.plot import default_picture, draw, names, read_curves, smoothed
from jaxtrain.train.folder import RunFolder

STEPS = 40


def write_run(folder, *, scale=1.0, bigram=2.5, validation=("validation_loss", "validation_loss_ema")):
    """Make the metrics of a run whose numbers are known."""
    records = [{"step": 0, "bigram_loss": bigram}] if bigram else []
    for step in range(1, STEPS + 1):
        record = {"step": step, "loss": scale * (2 + 4 / step), "learning_rate": scale * 1e-3 * step}
        record["gradient_norm"] = 1 / step
        if step > 1:
            record["tokens_per_second"] = 1000.0 + step
        if step % 10 == 0:
            record |= {key: scale * (2.1 + 4 / step) for key in validation}
        records.append(record)
    folder.mkdir(parents=True, exist_ok=True)
    RunFolder(folder).metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def drawn(axes):
    """Every line of some axes as (steps, values)."""
    return [tuple(map(tuple, line.get_data())) for line in axes.lines]


def labels(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_one_run_is_drawn_whole(tmp_path):
    figure = draw([read_curves(write_run(tmp_path / "first"), "first")])
    loss, rate, norm, speed = figure.axes
    steps = tuple(range(1, STEPS + 1))
    assert (steps, tuple(2 + 4 / step for step in steps)) in drawn(loss)
    assert ((10, 20, 30, 40), tuple(2.1 + 4 / step for step in (10, 20, 30, 40))) in drawn(loss)
    assert any(line.get_linestyle() == "--" and set(line.get_ydata()) == {2.5} for line in loss.lines)
    assert drawn(rate) == [(steps, tuple(1e-3 * step for step in steps))]
    assert (steps[1:], tuple(1000.0 + step for step in steps[1:])) in drawn(speed)
    assert (steps, tuple(1 / step for step in steps)) in drawn(norm) and norm.get_ylim()[1] < 1, (
        "without the first peak"
    )
    titles = ["loss", "learning rate", "gradient norm", "throughput"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    assert labels(loss.get_legend()) == [
        "train, smoothed",
        "train, each step",
        "validation",
        "validation, ema",
        "bigram model, 2.500",
    ]
    assert figure.get_suptitle() == "first"


def test_runs_differ_in_colour_and_are_named(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", scale=1.5)]
    figure = draw([read_curves(folder, folder.name) for folder in folders])
    loss, rate, *_ = figure.axes
    assert labels(figure.legends[0]) == ["a", "b"]
    colors = [handle.get_color() for handle in figure.legends[0].legend_handles]
    assert [line.get_color() for line in rate.lines] == colors and colors[0] != colors[1]
    bars = [line for line in loss.lines if set(line.get_ydata()) == {2.5}]
    assert len(bars) == 1 and bars[0].get_color() not in colors, "runs on the same data share one bar"


def test_bigram_bars_that_differ_have_the_colours_of_their_runs(tmp_path):
    folders = [write_run(tmp_path / "a", bigram=2.5), write_run(tmp_path / "b", bigram=3.0)]
    loss, rate, *_ = draw([read_curves(folder, folder.name) for folder in folders]).axes
    bars = {line.get_ydata()[0]: line.get_color() for line in loss.lines if len(set(line.get_ydata())) == 1}
    assert bars == {2.5: rate.lines[0].get_color(), 3.0: rate.lines[1].get_color()}


def test_all_points_and_bars_are_within_view(tmp_path):
    low, high = draw([read_curves(write_run(tmp_path, bigram=9.0), "x")]).axes[0].get_ylim()
    assert low < 2.1 and high > 9.0


def test_run_without_evaluation_is_drawn(tmp_path):
    loss = draw([read_curves(write_run(tmp_path, bigram=None, validation=()), "x")]).axes[0]
    assert labels(loss.get_legend()) == ["train, smoothed", "train, each step"]


@pytest.mark.parametrize("loss", [2.0, math.nan])
def test_run_of_one_step_is_drawn(tmp_path, loss):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "learning_rate": 0.0}) + "\n")
    assert main(["plot", str(tmp_path)]) == 0


def test_smoothing_is_centred_and_passes_over_what_is_not_finite():
    np.testing.assert_allclose(smoothed(np.array([3.0, 3.0, math.nan, 3.0, math.inf]), 2.0), 3.0)
    np.testing.assert_allclose(smoothed(np.array([math.nan, 1.0]), 2.0), 1.0)
    assert np.isnan(smoothed(np.array([math.nan, math.inf]), 2.0)).all()
    line = np.arange(1000.0)
    np.testing.assert_allclose(smoothed(line, 20.0)[200:800], line[200:800], atol=1e-6)  # where it has both sides
    noise = np.random.default_rng(0).standard_normal(1000)
    assert smoothed(noise, 20.0).std() < 0.3 < noise.std()


def test_picture_of_one_run_is_in_it_by_default(tmp_path, capsys):
    assert main(["plot", str(write_run(tmp_path / "a"))]) == 0
    out = tmp_path / "a" / "plot.png"
    assert capsys.readouterr().out == f"wrote {out}\n"
    height, width, _ = imread(out).shape
    assert width >= 1200 and height >= 900


def test_picture_of_several_runs_is_beside_them_by_default(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    assert main(["plot", "runs/a", "runs/b"]) == 0
    assert capsys.readouterr().out == "wrote runs/a+b.png\n" and (tmp_path / "runs" / "a+b.png").exists()
    assert not (tmp_path / "runs" / "a" / "plot.png").exists()
    assert default_picture([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == Path("x-run+y-run.png")
    assert default_picture([Path(f"/other/{number}") for number in range(99)]) == Path("/other/0+98.png")


def test_names_of_runs_are_drawn_as_they_are(tmp_path, capsys):
    """Not as formulas, which $ begins, nor left out, as matplotlib does with labels after an underscore."""
    shown = ["_a", "b$\\c$", "実験 #1"]
    folders = [write_run(tmp_path / name) for name in shown]
    figure = draw([read_curves(folder, folder.name) for folder in folders])
    assert labels(figure.legends[0]) == shown
    assert main(["plot", *map(str, folders)]) == 0
    assert main(["plot", str(folders[1])]) == 0
    assert (folders[1] / "plot.png").exists()


def test_picture_is_written_where_asked(tmp_path):
    out = tmp_path / "new" / "runs.png"
    assert main(["plot", str(write_run(tmp_path / "a")), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a" / "plot.png").exists()


def test_picture_without_a_kind_is_a_png_and_named_so(tmp_path, capsys):
    assert main(["plot", str(write_run(tmp_path / "a")), "--out", str(tmp_path / "picture")]) == 0
    assert (tmp_path / "picture.png").exists() and capsys.readouterr().out == f"wrote {tmp_path}/picture.png\n"


def test_names_are_as_short_as_they_can_be_while_distinct(tmp_path):
    assert names([tmp_path / "runs" / "a"]) == ["a"]
    assert names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]


@pytest.mark.parametrize(
    "content",
    [None, '{"step": 0, "bigram_loss": 2.5}\n', '{"step": 1\n{"step": 2}\n'],
    ids=["nothing", "no step", "no records"],
)
def test_run_without_metrics_is_refused_in_one_line(tmp_path, capsys, content):
    if content:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert main(["plot", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxtrain: error: ") and captured.err.count("\n") == 1 and captured.out == ""
    check(captured.err, tmp_path, "metrics.jsonl")
    assert not (tmp_path / "plot.png").exists()


def test_kind_of_picture_that_cannot_be_written_is_refused_in_one_line(tmp_path, capsys):
    assert main(["plot", str(write_run(tmp_path)), "--out", str(tmp_path / "plot.nothing")]) == 2
    error = capsys.readouterr().err
    assert "nothing" in error and "png" in error and error.count("\n") == 1
