"""`jaxtrain average`: a run of several checkpoints of a run."""

import re

import numpy as np
from messages import check, refusal
from tolerances import AVERAGE, assert_close

from jaxtrain.cli.main import main
from jaxtrain.runs import load_run


def _average(run, out, *options) -> int:
    return main(["average", str(run), "--out", str(out), *map(str, options)])


def test_the_mean_of_two_checkpoints_is_a_run(tiny_run, tmp_path, capsys):
    assert _average(tiny_run.folder, tmp_path / "mean") == 0
    assert "step 2: +0.5000\nstep 3: +0.5000\n" in capsys.readouterr().out
    first, second, mean = (
        load_run(folder, step=step).model.params["output"]["kernel"]
        for folder, step in ((tiny_run.folder, 2), (tiny_run.folder, 3), (tmp_path / "mean", 0))
    )
    assert_close(mean, (np.float64(first) + np.float64(second)) / 2, AVERAGE)


def test_a_search_ends_with_what_it_measured_to_be_best(tiny_run, tmp_path, capsys):
    assert _average(tiny_run.folder, tmp_path / "best", "--search", 8, "--batches", 1) == 0
    printed = capsys.readouterr().out
    losses = [float(number) for number in re.findall(r"validation loss (\d+\.\d+)", printed)]
    assert losses[2] <= min(losses[:2])
    assert f"{load_run(tmp_path / 'best').evaluate(batches=1).loss:.4f}: found" in printed


def test_what_is_not_there_is_refused(tiny_run, tmp_path, capsys):
    run, out = tiny_run.folder, tmp_path / "out"
    for options, facts in [
        (("--window", 3), ("--window=3", "2 checkpoints", "keep_last")),
        (("--window", 0), ("--window=0", "at least 1")),
        (("--steps", 1, 2), ("--steps=1", "2, 3")),
        (("--decay", 1.0), ("--decay=1.0", "[0, 1)")),
        (("--window", 1, "--search", 9), ("--search=9", "one checkpoint")),
        (("--search", 2), ("--search=2", "at least 4")),
    ]:
        check(refusal(capsys, "average", run, "--out", out, *options), *facts)
        assert not out.exists()
