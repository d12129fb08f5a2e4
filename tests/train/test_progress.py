"""The speed of a run counts steps, and nothing that happens between them; progress is shown in a file, too."""

import io
from itertools import pairwise
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxtrain.train import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_the_first_step_has_no_speed_and_a_steady_one_is_tokens_over_seconds(clock):
    speed = progress.Speed()
    assert speed.step_done(1000) is None
    for clock[0] in (2.0, 4.0, 6.0):
        assert speed.step_done(1000) == pytest.approx(500)


def test_an_interruption_is_left_out(clock):
    speed = progress.Speed()
    found = []
    for before, clock[0] in pairwise((0.0, 2.0, 4.0, 100.0, 102.0)):
        if clock[0] - before > 50:
            speed.pause()
        found.append(speed.step_done(1000))
    assert found == [None, pytest.approx(500), None, pytest.approx(500)]


def test_the_speed_follows_a_change_slowly(clock):
    speed = progress.Speed()
    for clock[0] in (0.0, 1.0, 3.0):
        found = speed.step_done(1000)
    assert 500 < found < 1000


def test_where_there_is_no_terminal_lines_come_at_a_sensible_pace(clock, capsys):
    with progress.display(200, start=100, shown=True) as display:
        for step in range(101, 201):
            clock[0] += 1.0
            display.update(step, {"loss": 2.0} | ({"tokens_per_second": 1234.5} if step > 101 else {}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["step 101 of 200  loss 2.0000", "step 111 of 200  loss 2.0000  1,234 tokens/s  0:01:29 left"]
    assert lines[-1] == "step 200 of 200  loss 2.0000  1,234 tokens/s"
    assert len(lines) == 11


def test_the_bar_shows_the_share_of_the_peak_where_the_peak_is_known(monkeypatch):
    numbers = {"loss": 2.0, "tokens_per_second": 1000.0}
    monkeypatch.setattr(progress.jax, "devices", lambda: [SimpleNamespace(device_kind="TPU v5e")])
    share = progress.model_flops_utilization(1000.0, 197e9, devices=4)
    with progress.Bar(Console(force_terminal=True, width=120, file=io.StringIO()), 10, start=0) as bar:
        bar.update(1, numbers | {"mfu": share})
    assert "1,000 tokens/s  MFU 25.0%" in bar.console.file.getvalue()
    monkeypatch.setattr(progress.jax, "devices", lambda: [SimpleNamespace(device_kind="cpu")])
    assert progress.model_flops_utilization(1000.0, 197e9, devices=4) is None


def test_only_the_process_that_is_told_to_shows_progress(capsys):
    with progress.display(200, start=100, shown=False) as display:
        display.update(101, {"loss": 2.0})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("start", "shown"), [(9, True), (10, False)])
def test_a_run_without_a_step_left_has_no_bar(start, shown, capsys):
    console = Console(force_terminal=True)
    with progress.Bar(console, 10, start=start) as bar:
        bar.console.print("said")
    printed = capsys.readouterr().out
    assert ("10" in printed) is shown and "said" in printed
