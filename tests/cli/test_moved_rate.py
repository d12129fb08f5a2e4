"""A run that goes on with more steps says what becomes of the learning rate, and how it could be otherwise."""

import shlex

import pytest
from tiny_run import QUICKSTART

from jaxtrain.cli.config_file import load
from jaxtrain.cli.moved_rate import another_phase, longer_phase, moved_rate, rate_after


@pytest.fixture(scope="module")
def before():
    return load(QUICKSTART).config


def _with(*changes):
    return load(QUICKSTART, changes).config


def _set(argument):
    """Return the override in a `--set` as a shell would give it."""
    flag, override = shlex.split(argument)
    assert flag == "--set"
    return override


def test_the_line_of_the_readme_moves_the_rate_and_says_so(before):
    longer = _with("phases.0.steps=600")
    assert longer == _with(_set(longer_phase(before)))
    note, otherwise = moved_rate(before, longer, 300)
    assert "after step 300 the learning rate goes from 0.0003 to 0.00172" in note
    added = _with(_set(otherwise.partition(": ")[2]))
    assert added == _with(_set(another_phase(before, 300)))
    assert [phase.steps for phase in added.phases] == [300, 300]
    assert rate_after(added, 300) == rate_after(added, 599) == pytest.approx(0.0003)
    assert not moved_rate(before, added, 300)


@pytest.mark.parametrize("start", [None, 0, 600])
def test_nothing_is_said_where_no_step_made_stands_behind_it_or_none_follows(before, start):
    assert not moved_rate(before, _with("phases.0.steps=600"), start)


def test_nothing_is_said_where_the_rate_stays(before):
    assert not moved_rate(before, _with("hooks.0.every_steps=7"), 200)
    constant = "optimizer.learning_rate=@Constant(peak=1e-3)"
    assert not moved_rate(_with(constant), _with(constant, "phases.0.steps=600"), 300)


def test_a_change_in_the_middle_is_noted_too(before):
    note, _ = moved_rate(before, _with("optimizer.learning_rate.peak=1e-3"), 100)
    assert "after step 100" in note
