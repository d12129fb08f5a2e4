"""`jaxtrain sweep`: the runs of a grid, what becomes of each, and how they are compared."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from messages import check, refusal
from tiny_run import CONFIGS, QUICKSTART, STEPS, command, content

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.cli.sweep_grid import points, read_axes
from jaxtrain.cli.sweep_picture import draw
from jaxtrain.cli.sweep_results import best, measures, outcome, table
from jaxtrain.train import distributed
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.loop import Result

BATCH = "phases[0].batch_size"


def names(*grids):
    return [point.name for point in points(read_axes(grids, ()))]


def test_points_are_named_by_what_differs_and_numbers_by_their_value():
    assert names("optimizer.learning_rate.peak=1e-3,0.01", "seed=1,2") == [
        "peak=0.001,seed=1",
        "peak=0.001,seed=2",
        "peak=0.01,seed=1",
        "peak=0.01,seed=2",
    ]
    assert names("phases[0].steps=3", "phases.1.steps=4") == ["0.steps=3,1.steps=4"]
    [point] = points(read_axes(["phases[0].steps=3"], ()))
    assert point.overrides == ("phases.0.steps=3",)


@settings(max_examples=40)
@given(st.lists(st.text("ab@()[]'\"\\=.1,-/ é", max_size=12), min_size=1, max_size=4, unique=True))
def test_values_in_brackets_or_quotes_keep_their_commas_and_no_two_points_share_a_folder(texts):
    quoted = [repr(text) for text in texts] + ["@Lion(b1=0.9,b2=(1,2))"]
    axes = read_axes([f"optimizer={', '.join(quoted)}"], ())
    assert axes[0].values == tuple(quoted)
    folders = names(f"optimizer={','.join(quoted)}")
    assert len(set(folders)) == len(quoted) and all("/" not in name for name in folders)


@pytest.mark.parametrize(
    ("grids", "facts"),
    [
        (["seed"], ["seed", "key=value,value"]),
        (["seed=1,,2"], ["seed=1,,2", "empty"]),
        (["seed=1,1"], ["seed=1,1", "twice"]),
        (["seed=1", "seed=2"], ["seed", "twice"]),
        (["phases[0].steps=1,2"], ["phases.0.steps", "--set"]),
        (["optimizer=@Lion(b1=0.9"], ["@Lion(b1=0.9", ")"]),
        (["seed=1,01.0e0"], ["seed"]),
        (["sed=1,2"], ["sed", "seed"]),
        (["clip_norm=1,1.0"], ["clip_norm=1", "clip_norm=1.0", "same"]),
    ],
)
def test_grid_that_cannot_be_run_is_refused_before_the_first_run(tmp_path, capsys, grids, facts):
    words = [word for grid in grids for word in ("--grid", grid)]
    tiny = CONFIGS / "quickstart.gin"
    said = refusal(capsys, "sweep", tiny, "--set", "phases.0.steps=30", "--folder", tmp_path / "s", *words)
    check(said, *facts)
    assert not (tmp_path / "s").exists()


def write_run(folder, *, losses=(), validation=None, checkpoint=None, skipped=0, ended=None):
    """Write the metrics of a run of ten steps, and the manifest of a checkpoint."""
    lines = [{"step": step, "loss": loss, "skipped_in_a_row": skipped} for step, loss in enumerate(losses, 1)]
    if lines:
        lines[-1] |= {"tokens_per_second": 1500.0} | ({} if validation is None else {"validation_loss": validation})
    folder.mkdir(parents=True)
    RunFolder(folder).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if checkpoint is not None:
        path = RunFolder(folder).checkpoints / str(checkpoint)
        path.mkdir(parents=True)
        manifest = {"checkpoint": path.name, "layout": 1, "frozen": None, "ended": ended, "files": {"a": [0, 0]}}
        (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return axes, points and outcomes of four runs of ten steps: two finished, one diverged, one just begun."""
    folder = tmp_path_factory.mktemp("sweep")
    config = load(QUICKSTART, ["phases[0].steps=10", "optimizer.learning_rate.warmup_steps=1"]).config
    axes = read_axes(["optimizer.learning_rate.peak=1e-3,1e-1", "data.tokenizer=$a$,_b"], ())
    write_run(folder / "0", losses=range(20, 10, -1), validation=3.5, checkpoint=10)
    write_run(folder / "1", losses=range(30, 20, -1), validation=2.5, checkpoint=10)
    write_run(folder / "2", losses=(9.0, 9.0), checkpoint=1, skipped=config.max_skipped_steps)
    write_run(folder / "3", losses=(1.0,) * 10, validation=1.0, checkpoint=5)  # its last checkpoint was not saved
    return axes, points(axes), [outcome(RunFolder(folder / str(number)), config) for number in range(4)]


def test_runs_are_compared_by_validation_loss_and_the_unfinished_are_not(compared):
    axes, of, outcomes = compared
    assert [found.progress for found in outcomes] == ["finished"] * 2 + ["diverged at step 2", "step 10 of 10"]
    assert measures(outcomes) == ("validation loss", [3.5, 2.5, None, None]) and best(outcomes) == 1
    without = [found._replace(validation=None) for found in outcomes]
    assert measures(without) == ("training loss", [11.0, 21.0, None, None]) and best(without) == 0
    lines = table(axes, of, outcomes, {of[3].name: "why"}).splitlines()
    assert lines[0].split() == ["peak", "tokenizer", "loss", "validation", "tokens/s"]
    assert [line.split() for line in lines[1:5]] == [
        ["0.001", "$a$", "11.0000", "3.5000", "1,500", "finished"],
        ["*", "0.001", "_b", "21.0000", "2.5000", "1,500", "finished"],
        ["0.1", "$a$", "9.0000", "-", "1,500", "diverged", "at", "step", "2"],
        ["0.1", "_b", "1.0000", "1.0000", "1,500", "refused"],
    ]


def test_run_that_a_hook_has_ended_is_over_and_compared(compared, tmp_path):
    axes, of, outcomes = compared
    config = load(QUICKSTART, ["phases[0].steps=10", "optimizer.learning_rate.warmup_steps=1"]).config
    write_run(tmp_path / "0", losses=(4.0,) * 6, validation=1.5, checkpoint=6, ended="no longer falls")
    write_run(tmp_path / "1", losses=(4.0,) * 7, validation=1.5, checkpoint=6, ended="no longer falls")  # gone on
    ended, gone_on = (outcome(RunFolder(tmp_path / name), config) for name in ("0", "1"))
    assert (ended.over, gone_on.over) == ("ended early", "")
    with_ended = [*outcomes[:3], ended]
    assert measures(with_ended) == ("validation loss", [3.5, 2.5, None, 1.5]) and best(with_ended) == 3
    assert table(axes, of, with_ended, {}).splitlines()[4].split()[0] == "*"


def test_picture_has_every_finished_run_at_its_value_and_every_curve(compared, tmp_path):
    axes, of, outcomes = compared
    figure = draw(axes, of, outcomes)
    by_value, by_step = figure.axes
    shown = {tuple(point) for dots in by_value.collections for point in dots.get_offsets().filled().tolist()}
    assert {(0.001, 3.5), (0.001, 2.5)} <= shown and by_value.get_xscale() == "log"
    assert [line.get_ydata()[0] for line in by_step.lines] == [20, 30, 9, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [point.name for point in of]
    figure.savefig(tmp_path / "picture.png")  # $ begins no formula


@pytest.fixture
def trained(monkeypatch):
    """Return the names of the runs made, and how each ends, in place of training: `finished`, None, or an error."""
    names, ends = [], {}

    def end(arguments, config, trainer):
        names.append(Path(arguments.run).name)
        if isinstance(how := ends.get(names[-1], True), Exception):
            raise how
        return how if how is None else Result(state=None, step=1, finished=how, numbers={}, ended=None)

    monkeypatch.setattr("jaxtrain.cli.train.prepared", lambda arguments: (None, None))
    monkeypatch.setattr("jaxtrain.cli.train.train", end)
    return names, ends


def test_run_that_fails_does_not_end_the_sweep_and_a_signal_does(tmp_path, trained, capsys):
    words = ["sweep", QUICKSTART, "--folder", str(tmp_path), "--grid", "seed=1,2,3,4"]
    names, ends = trained
    assert main(words) == 0 and names == ["seed=1", "seed=2", "seed=3", "seed=4"]
    ends |= {"seed=2": None, "seed=4": False}
    assert main(words) == 1 and len(names) == 8
    ends |= {"seed=1": ValueError("no\nroom"), "seed=3": False}
    capsys.readouterr()
    assert main(words) == 2 and names[8:] == ["seed=1", "seed=2", "seed=3"]
    assert capsys.readouterr().err == "jaxtrain: error: seed=1: no; room\n"
    ends["seed=1"] = TypeError("a fault of the program")
    with pytest.raises(TypeError):
        main(words)


def test_several_processes_are_refused_a_run_together_or_the_sweep_ends(tmp_path, trained, monkeypatch, capsys):
    """One that went on alone would train the next run while the others train this one."""
    names, ends = trained
    failed_elsewhere = iter([True, False, False])
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(distributed, "of_first", lambda number: number)
    monkeypatch.setattr(distributed, "anywhere", lambda failed: failed or next(failed_elsewhere))
    ends |= {"seed=3": ValueError("no such file")}
    words = ["sweep", QUICKSTART, "--folder", str(tmp_path), "--grid", "seed=1,2,3,4"]
    assert main(words) == 2 and names == ["seed=2", "seed=3"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("jaxtrain: error: seed=1: another process")
    assert said[1:] == ["jaxtrain: error: no such file"]


@pytest.fixture(scope="module")
def swept(text, tmp_path_factory):
    """Return the words of a sweep of two runs, of which eight devices refuse the second, and its folder."""
    pairs = zip(*[iter(command(text)[2:])] * 2, strict=True)  # ("--set", change)
    changes = [change for _, change in pairs if not change.startswith(("hooks", BATCH))]
    folder = tmp_path_factory.mktemp("sweeps") / "s"
    words = [word for change in [*changes, "hooks=(@Checkpoint(every_steps=2),)"] for word in ("--set", change)]
    return folder, ["sweep", QUICKSTART, *words, "--folder", str(folder), "--grid", f"{BATCH}=8,9"]


def test_runs_are_made_once_and_go_on_and_no_others_share_their_folder(swept, capsys):
    folder, words = swept
    run = folder / "batch_size=8"
    assert main([*words, "--print"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[:5:2] for line in commands] == [["jaxtrain", QUICKSTART, str(run)]] + [
        ["jaxtrain", QUICKSTART, str(folder / "batch_size=9")]
    ]
    assert not folder.exists()

    assert main(words) == 2
    first = capsys.readouterr()
    assert first.err.count("jaxtrain: error: batch_size=9: phases[0].batch_size=9 is not divisible by 8") == 1
    results = (folder / "results.csv").read_text()
    assert [row["progress"] for row in csv.DictReader(results.splitlines())] == ["finished", "not begun"]
    assert "* the least training loss of the finished runs: batch_size=8" in first.out
    assert imread(folder / "results.png").shape[:2] == (750, 1800)

    shutil.rmtree(RunFolder(run).checkpoints / str(STEPS))  # as if the run had been killed before its end
    assert main(words) == 2
    assert "going on from the checkpoint of step 2" in capsys.readouterr().out
    losses = [[row["loss"] for row in csv.DictReader(text.splitlines())] for text in (results, _results(folder))]
    assert losses[0] == losses[1]
    before = content(run)
    assert main(words) == 2 and content(run) == before
    assert "1 of 2: batch_size=8, finished before" in capsys.readouterr().out

    check(refusal(capsys, *words, "--set", "seed=1"), run, "seed: 0 -> 1", "--folder")
    other = [*words[:-1], f"{BATCH}=16"]
    check(refusal(capsys, *other, "--set", "clip_norm=2.0"), "clip_norm: 1.0 -> 2.0", "--folder")


def _results(folder):
    return (folder / "results.csv").read_text()
