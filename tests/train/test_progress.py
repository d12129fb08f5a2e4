"""The speed of a run counts steps, and nothing that happens between them."""

from itertools import pairwise

import pytest

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
