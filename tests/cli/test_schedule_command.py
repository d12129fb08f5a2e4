"""`jaxtrain schedule`: what a person sees."""

import argparse
import io
import re
from pathlib import Path

import pytest
from messages import check, refused
from rich.console import Console

from jaxtrain.cli import schedule
from jaxtrain.cli.arguments import COMMANDS
from jaxtrain.cli.config_file import load
from jaxtrain.pipeline.draw import HUES, color, grid
from jaxtrain.pipeline.schedules.chimera import Chimera
from jaxtrain.pipeline.schedules.interleaved import Interleaved
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.simulator import simulate
from jaxtrain.pipeline.table import forward, fused

SIZE = ["--stages", "4", "--microbatches", "8"]
MODEL = ["--model", "configs/pipeline_tiny.gin"]


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    COMMANDS["schedule"].add(parser)
    return schedule.run(parser.parse_args([str(word) for word in words]))


def _error(capsys) -> str:
    """Return the line below the usage, without what argparse writes before the name of the argument."""
    return capsys.readouterr().err.splitlines()[-1].split(" error: argument ")[1]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_show_prints_the_grid_and_the_figures(capsys):
    assert _run("show", "ZBH1", *SIZE) == 0
    out = capsys.readouterr().out
    first = "stage 0  F0 F1 F2 F3········· B0 W0 F4 B1 W1 F5 B2 W2 F6 B3 W3 F7 B4 W4 B5 W5 B6 W6 B7 W7"
    assert first in out
    assert "27 free-running, 27 in one compiled loop" in out
    assert "11.1% free-running" in out
    assert "4, 4, 4, 4 microbatches' passes through one stage" in out


def test_show_draws_the_loop_where_asked(capsys):
    _run("show", "OneFOneB", *SIZE, "--mode", "free")
    free = capsys.readouterr().out
    _run("show", "OneFOneB", *SIZE, "--mode", "tick")
    assert free != capsys.readouterr().out


def test_show_writes_pictures_and_a_table_that_it_reads_again(tmp_path, capsys):
    files = [tmp_path / "deep" / name for name in ("a.png", "a.svg")]
    table = tmp_path / "table.txt"
    _run("show", "VHalf", *SIZE, "--png", files[0], "--svg", files[1], "--save", table)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in files[1].read_text()
    first = capsys.readouterr().out.split("\n", 1)[1]
    for again in ([table], [table, *SIZE], [f"FromFile(path={str(table)!r})"]):
        _run("show", *again)
        assert capsys.readouterr().out.split("\n", 1)[1] == first
    for contradiction in (["--stages", "3"], ["--microbatches", "4"]):
        with refused(ValueError, f"{contradiction[0][2:]}={contradiction[1]}", table, "nearest"):
            _run("show", table, *contradiction)


def test_compare_lists_every_schedule_and_says_why_one_is_left_out(capsys):
    assert _run("compare", "--stages", "3", "--microbatches", "3") == 0
    out = capsys.readouterr().out
    assert "PairedInterleaved *" in out
    assert "BitPipe is left out: stages=3" in out
    assert "DualPipeV is left out: microbatches=3 must be at least 6" in out


def test_compare_tells_waiting_inside_a_stage_from_all_waiting(capsys):
    _run("compare", *SIZE)
    loop, free, inside = re.search(r"ZBH2 .* (\S+%) +(\S+%) +(\S+%)", capsys.readouterr().out).groups()
    assert (loop, free, inside) == ("11.1%", "11.1%", "0.0%")


def test_compare_uses_the_given_costs(capsys):
    _run("compare", *SIZE, "--costs", "1,1.4,0.6")
    assert "F:B:W = 1:1.4:0.6" in capsys.readouterr().out


REFUSED = [
    (["show", "ZBH1"], ("--stages", "--microbatches")),
    (["show", "GPipe", *SIZE, "--memory-limit", "4"], ("memory_limit=4", 8)),
    (["show", "ZBH1", *SIZE, "--png", "a.svg"], ("--png", "a.svg", "a.png")),
    (["show", "ZBH1", *SIZE, "--svg", "a.gif"], ("--svg", "a.gif", "a.svg")),
    (["show", "Hanayo", *SIZE, *MODEL], ("chunk",)),
    (
        ["show", "GPipe", *SIZE, "--costs", "1e-6,1,1"],
        ("1e-06",),
    ),
    (["show", "GPipe", *SIZE, "--costs", "1e308,1e308,1e308"], ("drawn",)),
    (["show", "GPipe", *SIZE, "--costs", "1,1,1,1e30"], ("takes 0", "drawn")),
    (["compare", "--stages", "0", "--microbatches", "8"], ("stages=0", "nearest 1")),
    (["compare", "--stages", "4", "--microbatches", "-1"], ("microbatches=-1", "nearest 1")),
    (["compare", "GPip", *SIZE], ("'GPip'", "'GPipe'")),
    (
        ["compare", "Chimera", "BitPipe", "--stages", "3", "--microbatches", "4"],
        ("Chimera: stages=3", "nearest 2 or 4", 1),
    ),
    (["compare", "GPipe", "VMin", *SIZE, "--memory-limit", "1"], ("VMin: memory_limit=1", 2)),
    (["show", "nothing.txt", *SIZE], ("nothing.txt", "table file")),
]


@pytest.mark.parametrize(("words", "facts"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_cannot_be_drawn_is_refused_in_one_line_before_anything_is_printed(words, facts, capsys):
    with refused(ValueError, *facts):
        _run(*words)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("limit", ["nan", "inf", "0", "x", "1e999", "3e-3000"])
def test_a_memory_limit_that_limits_nothing_is_refused(limit, capsys):
    with pytest.raises(SystemExit):
        _run("compare", *SIZE, "--memory-limit", limit)
    check(_error(capsys), f"`{limit}`", "above 0", 4)


@pytest.mark.parametrize(
    "costs", ["1,2", "1,a,1", "0,1,1", "1,1,1,1,1", "nan,1,1", "1,inf,1", "1,1,1,nan", "1,1,1,3e-3000"]
)
def test_costs_that_make_no_sense_are_refused(costs, capsys):
    with pytest.raises(SystemExit):
        _run("compare", *SIZE, "--costs", costs)
    check(_error(capsys), "--costs", "three or four")


def test_costs_and_a_model_that_has_its_own_are_refused(capsys):
    with pytest.raises(SystemExit):
        _run("show", "ZBH1", *SIZE, *MODEL, "--costs", "1,1,1")
    assert "argument --costs: not allowed with argument --model" in capsys.readouterr().err  # in the words of argparse


def test_compare_takes_schedules_by_name_or_file_and_leaves_out_those_that_keep_too_much(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text(ZBH1().table(4, 8).dump())
    _run("compare", "Interleaved(chunks_per_stage=4)", "GPipe", "mine.txt", *SIZE, "--memory-limit", "6")
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.partition("\nschedule ")[2].partition("\n\n")[0].splitlines()[1:]]
    assert rows == ["Interleaved(chunks_per_stage=4)", "mine.txt"]
    assert "GPipe is left out: memory_limit=6: the schedule keeps 8" in out
    assert "ZBH2" not in out


def test_the_costs_of_a_model_are_those_its_run_packs_with(capsys):
    config = load("configs/pipeline_tiny.gin").config
    table, costs = config.gradients.plan(4, config.model, 128)
    for action in ("show", "compare"):
        _run(action, "PairedInterleaved", *SIZE, *MODEL)
        out = capsys.readouterr().out
        assert "F:B:W = 1:1.08:0.923, a layer's FLOPs of configs/pipeline_tiny.gin at 128 tokens" in out
        assert f"{simulate(table, costs).makespan:g}" in out


def test_depth_is_the_chunk_and_a_prime_the_second_weight_copy():
    table = Chimera().table(4, 4)  # microbatch 1 runs from stage 3 to stage 0
    assert color(table, forward(0, 0)) == color(table, forward(1, 0)) == HUES[forward(0, 0).unit][0]
    assert color(table, forward(0, 3)) == color(table, forward(1, 3)) == HUES[forward(0, 0).unit][1]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(grid(table, simulate(table), width=200, letters=True))
    text = console.export_text()
    assert "F0 " in text and "F1'" in text and "0': on the second weight copy" in text


def test_each_unit_has_a_hue_of_its_own():
    assert len(set(HUES.values())) == 4
    table = Chimera().table(4, 4)
    assert color(table, fused(0, 0)) == HUES[fused(0, 0).unit][0]


def test_every_action_and_all_waiting_fill_the_grid():
    table = ZBH1().table(4, 8)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(grid(table, simulate(table), width=200, letters=False))
    lines = [line for line in console.export_text().splitlines() if line.startswith("stage")]
    assert [len(line) for line in lines] == [len("stage 0 ") + 2 * 27] * 4
    assert sum(line.count("·") for line in lines) == 2 * (27 * 4 - 96)


def test_a_wide_grid_is_folded_to_the_width():
    table = Interleaved().table(4, 16)
    console = Console(width=70, record=True, file=io.StringIO())
    console.print(grid(table, simulate(table), width=70, letters=False))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 70
    assert sum(line.startswith("stage 3") for line in lines) > 1
