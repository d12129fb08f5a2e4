"""Numbers that do not fit a schedule: one line with the rule and the nearest valid value."""

import subprocess
import sys
from math import inf, nan

import pytest
from messages import CLASSES, refused

from jaxtrain.cli.schedule_catalog import parse
from jaxtrain.pipeline.simulator import Costs

RULES = [
    ("Interleaved", 4, 0, ("microbatches=0", 1)),
    ("PairedInterleaved(chunks_per_stage=0)", 4, 4, ("chunks_per_stage=0", 1)),
    ("InterleavedZeroBubble", 4, 0, ("microbatches=0", 1)),
    ("PairedDeferredW", 4, 6, ("microbatches=6", "nearest 4 or 8")),
    ("BreadthFirst", 4, 0, ("microbatches=0", 1)),
    ("DualPipeV", 4, 7, ("microbatches=7", "nearest 8")),
    ("Chimera", 4, 5, ("microbatches=5", 2, "nearest 4 or 6")),
    ("Chimera", 3, 4, ("stages=3", "nearest 2 or 4")),
    ("BitPipe", 5, 4, ("stages=5", "nearest 4 or 6")),
    ("GPipe", 4, 0, ("microbatches=0", 1)),
    ("ZBH1", 0, 4, ("stages=0", 1)),
    ("VZB", 4, 0, ("microbatches=0", 1)),
    ("Hanayo(waves=0)", 4, 4, ("waves=0", 1)),
    ("Interleaved(chunks_per_stage=0)", 4, 4, ("chunks_per_stage=0", 1)),
]


@pytest.mark.parametrize(
    ("schedule", "stages", "microbatches", "facts"), RULES, ids=[f"{c[0]}-{c[1]}-{c[2]}" for c in RULES]
)
def test_the_rule_and_the_nearest_value_are_named(schedule, stages, microbatches, facts):
    with refused(ValueError, *facts):
        parse(schedule).table(stages, microbatches)


NO_SCHEDULES = [
    ("Interleave", ("`Interleave`", "'Interleaved'")),
    ("xyz", ("`xyz`", "'xyz'")),
    ("ZBSearch(memory=8)", ("zb_search.ZBSearch", "'memory'", "'memory_limit'")),
    ("Interleaved(chunk=2)", ("'chunk'", "'chunks_per_stage'")),
    ("GPipe(depth=2)", ("GPipe", "'depth'")),
    ("Interleaved(2)", ("@Name(key=value, ...)",)),
    ("1F1B", ("`1F1B`",)),
    ("Interleaved(chunks_per_stage=open('x'))", ("@Name(key=value, ...)",)),
    ("Interleaved(chunks_per_stage=open())", ("'open'",)),
    ("Interleaved(**{'a': 1})", ("@Name(key=value, ...)",)),
    ("FromFile", ("schedule=FromFile", "`path`")),
    ("FromFile(path={[]: 1})", ("@Name(key=value, ...)",)),
    ("ZBSearch(weight=1e999)", ("`ZBSearch", "1e999", 0)),
    ("TwoBP(schedule=ZBSearch(transfer=3e-3000))", ("`TwoBP", "3e-3000", 0)),
    (f"Hanayo(waves={'9' * 400})", ("`Hanayo", "9" * 60 + "...", 400)),
    (f"Hanayo(waves={'-' * 4000}2)", ("`Hanayo", 4015, "nested")),
    (f"{'TwoBP(schedule=' * 99}GPipe{')' * 99}", ("`TwoBP", "nested")),
    ("FromFile(path='a\0')", ("`FromFile", "zero byte")),
    ("FromFile(path='\ud800')", ("`FromFile", r"'\ud800'", "UTF-8")),
    ("Hanayo(waves=1, waves=2)", ("Hanayo", "'waves'")),
]


@pytest.mark.parametrize(("text", "facts"), NO_SCHEDULES, ids=[ascii(case[0])[:60] for case in NO_SCHEDULES])
def test_a_schedule_that_does_not_exist_is_refused_with_the_nearest_name(text, facts):
    with refused(ValueError, *facts):
        parse(text)


WRONG_VALUES = [
    ("Interleaved(chunks_per_stage='x')", ("chunks_per_stage='x'", "int")),
    ("Interleaved(chunks_per_stage=2.5)", ("chunks_per_stage=2.5", "int")),
    ("Hanayo(waves=None)", ("waves=None", "int")),
    ("TwoBP(schedule=3)", ("schedule=3", "BitPipe", "ZBSearch")),
    ("ZBSearch(memory_limit=2.5)", ("memory_limit=2.5", "int")),
    ("ZBSearch(memory_limit=-1)", ("memory_limit=-1", "at least 1", "nearest 0")),
    ("ZBSearch(weight=0)", ("weight=0.0", "above 0")),
    ("TwoBP(schedule=ZBSearch(transfer=-1))", ("transfer=-1.0", "nearest 0")),
]


@pytest.mark.parametrize(("text", "facts"), WRONG_VALUES, ids=[case[0] for case in WRONG_VALUES])
def test_a_wrong_value_is_refused_where_the_schedule_is_named(text, facts):
    with refused(ValueError, f"`{text}`", *facts, varies=CLASSES if "ZBSearch" in facts else None):
        parse(text)


@pytest.mark.parametrize("cost", [0.0, -1.0, nan, inf, (1.0, nan)])
def test_costs_are_above_0_and_finite(cost):
    with refused(ValueError, f"weight={cost}", "above 0"):
        Costs(weight=cost)


@pytest.mark.parametrize("transfer", [-1.0, nan, inf])
def test_a_transfer_takes_a_finite_time(transfer):
    with refused(ValueError, f"{transfer=}", "nearest 0"):
        Costs(transfer=transfer)


def test_schedules_and_lowering_need_no_jax():
    modules = "jaxtrain.cli.schedule_catalog, jaxtrain.pipeline.lower, jaxtrain.pipeline.picture, jaxtrain.cli.schedule"
    script = f"import sys, {modules}; jaxtrain.cli.schedule_catalog.all_schedules(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
