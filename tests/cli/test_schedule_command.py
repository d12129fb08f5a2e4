"""`jaxtrain schedule`: what a person sees."""

import argparse
import io
import re

import pytest
from rich.console import Console

from jaxtrain.cli import schedule
from jaxtrain.pipeline.draw import grid
from jaxtrain.pipeline.schedules.interleaved import Interleaved
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.simulator import simulate

SIZE = ["--stages", "4", "--microbatches", "8"]


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    schedule.add_arguments(parser)
    return schedule.run(parser.parse_args([str(word) for word in words]))


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
    _run("show", table)
    assert capsys.readouterr().out.split("\n", 1)[1] == first


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "ZBH1"], "give --stages and --microbatches"),
        (["show", "GPipe", *SIZE, "--memory-limit", "4"], "memory_limit=4: the schedule keeps 8"),
        (["show", "ZBH1", *SIZE, "--png", "a.gif"], "a.gif: a picture's name ends in one of .pdf, .png, .svg"),
        (["show", "nothing.txt", *SIZE], "nothing.txt: there is no such table file"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        _run(*words)


@pytest.mark.parametrize("costs", ["1,2", "1,a,1", "0,1,1", "1,1,1,1,1"])
def test_costs_that_make_no_sense_are_refused(costs, capsys):
    with pytest.raises(SystemExit):
        _run("compare", *SIZE, "--costs", costs)
    assert "must be three or four numbers" in capsys.readouterr().err


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
