"""scripts/fuzz.py: a part of its damaged inputs, each right or refused; and what it is to notice, it notices."""

import collections
import dataclasses
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
CASES = {"gin file": 40, "override": 125, "schedule": 100, "table": 60, "data file": 100}
CASES |= {"tokenizer file": 80, "model folder": 40}


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import fuzz

    return fuzz


def counts(verdicts) -> collections.Counter:
    return collections.Counter(verdict.count for verdict in verdicts)


@pytest.mark.parametrize("kind", CASES)
def test_damaged_input_is_right_or_refused(fuzz, kind):
    verdicts = fuzz.run(kind, cases=CASES[kind], seed=0, seconds=60)
    assert [verdict for verdict in verdicts if verdict.count in fuzz.WRONG] == []
    assert counts(verdicts)["refused"] > CASES[kind] / 3 and counts(verdicts)["accepted"]


def test_the_same_seed_damages_the_same_and_another_other(fuzz):
    first, again, other = (fuzz.run("schedule", cases=30, seed=seed, seconds=60) for seed in (0, 0, 1))
    assert [v.case.what for v in first] == [v.case.what for v in again] != [v.case.what for v in other]


@pytest.mark.parametrize(
    "attempt, fault, valid, count",
    [
        (lambda: {}["key"], None, False, "tracebacks"),
        (lambda: time.sleep(10), None, False, "hangs"),
        (lambda: 1, "two were there", False, "silent"),
        (lambda: int("x"), None, False, "unnamed"),
        (lambda: int("file"), None, True, "valid"),
        (lambda: int("file"), None, False, "refused"),
        (lambda: 1, None, False, "accepted"),
    ],
)
def test_what_comes_of_an_input_is_counted(fuzz, attempt, fault, valid, count):
    case = fuzz.Case("kind", "what", attempt, lambda made: fault, ("file",), valid)
    assert fuzz.judge(case, seconds=0.2).count == count


def test_numbers_that_python_rounds_away_are_noticed(fuzz, monkeypatch):
    for module in ("config_literal", "config_file"):
        monkeypatch.setattr(f"jaxtrain.cli.{module}.check_number", lambda written: None)
    monkeypatch.setattr("jaxtrain.ranges.LEAST_FLOAT32", 0.0)  # which would refuse them, too
    monkeypatch.setattr("jaxtrain.ranges.GREATEST_FLOAT32", float("inf"))
    assert counts(fuzz.run("override", cases=50, seed=0, seconds=60))["silent"] >= 3


def test_lines_that_are_in_force_nowhere_are_noticed(fuzz, monkeypatch):
    from jaxtrain.cli.config_bindings import Bindings

    bind = Bindings.bind
    monkeypatch.setattr(Bindings, "bind", lambda self, key, bound: key.name == "warmup_steps" or bind(self, key, bound))
    assert counts(fuzz.run("gin file", cases=4, seed=0, seconds=60))["silent"] == 4


def test_a_table_that_computes_something_else_is_noticed(fuzz, monkeypatch):
    from fuzzed import tables

    lower = tables.lower
    monkeypatch.setattr(tables, "lower", lambda table: swapped(lower(table)))
    assert counts(fuzz.run("table", cases=5, seed=0, seconds=60)) == {"silent": 5}


def swapped(program):
    """A program in which B of the first two microbatches is of each other."""
    microbatch = program.backward.microbatch.copy()
    first, second = microbatch == 0, microbatch == 1
    microbatch[first], microbatch[second] = 1, 0
    return dataclasses.replace(program, backward=program.backward._replace(microbatch=microbatch))
