"""Numbers that do not fit a schedule: one line with the rule and the nearest valid value."""

import re
import subprocess
import sys
from math import inf, nan

import pytest

from jaxtrain.cli.schedule_catalog import parse
from jaxtrain.pipeline.simulator import Costs


@pytest.mark.parametrize(
    ("schedule", "stages", "microbatches", "message"),
    [
        ("Interleaved", 4, 9, "microbatches=9 must be a multiple of 4 .*; nearest 8 or 12$"),
        ("PairedInterleaved", 4, 3, "microbatches=3 must be a multiple of 4 .*; nearest 4$"),
        ("PairedDeferredW", 4, 6, "microbatches=6 must be a multiple of 4 .*; nearest 4 or 8$"),
        ("BreadthFirst", 4, 3, "microbatches=3 must be at least 4 .*; nearest 4$"),
        ("LayeredAccumulation", 4, 2, "microbatches=2 must be at least 4 .*; nearest 4$"),
        ("DualPipeV", 4, 7, "microbatches=7 must be at least 8 .*; nearest 8$"),
        ("Chimera", 4, 5, "microbatches=5 must be a multiple of 2 .*; nearest 4 or 6$"),
        ("Chimera", 3, 4, "stages=3: .* must be even; nearest 2 or 4$"),
        ("BitPipe", 5, 4, "stages=5: .* must be even; nearest 4 or 6$"),
        ("GPipe", 4, 0, "microbatches=0 must be at least 1; nearest 1$"),
        ("ZBH1", 0, 4, "stages=0 must be at least 1; nearest 1$"),
        ("VZB", 4, 0, "microbatches=0 must be at least 1"),
        ("Hanayo(waves=0)", 4, 4, "waves=0 must be at least 1"),
        ("Interleaved(chunks_per_stage=0)", 4, 4, "chunks_per_stage=0 must be at least 1"),
    ],
)
def test_the_rule_and_the_nearest_value_are_named(schedule, stages, microbatches, message):
    with pytest.raises(ValueError, match=message):
        parse(schedule).table(stages, microbatches)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Interleave", "`Interleave`: there is no class 'Interleave'; the nearest valid name is 'Interleaved'"),
        ("xyz", "`xyz`: there is no class 'xyz'; the nearest"),
        ("ZBSearch(memory=8)", "zb_search.ZBSearch has no key 'memory'; the nearest valid name is 'memory_limit'"),
        ("Interleaved(chunk=2)", "Interleaved has no key 'chunk'; the nearest valid name is 'chunks_per_stage'"),
        ("GPipe(depth=2)", "GPipe has no key 'depth'$"),
        ("Interleaved(2)", "neither a literal nor @Name.key=value"),
        ("1F1B", "`1F1B` is no schedule; write"),
        ("Interleaved(chunks_per_stage=open('x'))", "neither a literal nor @Name.key=value"),
        ("Interleaved(chunks_per_stage=open())", "there is no class 'open'"),
        ("Interleaved(**{'a': 1})", "cannot be read; write @Name.key=value"),
        ("FromFile", "`FromFile`: schedule=FromFile needs `path`; write path="),
        ("FromFile(path={[]: 1})", "neither a literal nor @Name.key=value"),
        ("ZBSearch(weight=1e999)", "^`ZBSearch.* no float holds 1e999: write 0, or a number between"),
        ("TwoBP(schedule=ZBSearch(transfer=3e-3000))", "^`TwoBP.* no float holds 3e-3000: write 0"),
        (f"Hanayo(waves={'9' * 400})", r"^`Hanayo.* no float holds 9+\.\.\. \(400 characters\)"),
        (f"Hanayo(waves={'-' * 4000}2)", r"^`Hanayo.* \(4015 characters\)`: is nested too deeply"),
        (f"{'TwoBP(schedule=' * 99}GPipe{')' * 99}", r"^`TwoBP.*`: is nested too deeply"),
        ("FromFile(path='a\0')", "^`FromFile.*`: holds a zero byte"),
        ("FromFile(path='\ud800')", r"^`FromFile.*`: holds '\\ud800', which is no character of UTF-8"),
        ("Hanayo(waves=1, waves=2)", "Hanayo has two values for 'waves'; remove one"),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused_with_the_nearest_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Interleaved(chunks_per_stage='x')", "chunks_per_stage='x' must be int, not str$"),
        ("Interleaved(chunks_per_stage=2.5)", "chunks_per_stage=2.5 must be int, not float$"),
        ("Hanayo(waves=None)", "waves=None must be int$"),
        ("TwoBP(schedule=3)", "schedule=3 must be BitPipe \\| .* \\| ZBSearch, not int$"),
        ("ZBSearch(memory_limit=2.5)", "memory_limit=2.5 must be int, not float$"),
        ("ZBSearch(memory_limit=-1)", "memory_limit=-1 must be at least 1, or 0 .*; nearest 0$"),
        ("ZBSearch(weight=0)", "weight=0.0 must be above 0 and finite"),
        ("TwoBP(schedule=ZBSearch(transfer=-1))", "transfer=-1.0 must be at least 0 and finite; nearest 0$"),
    ],
)
def test_a_wrong_value_is_refused_where_the_schedule_is_named(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'`{text}`')}: .*{message}"):
        parse(text)


@pytest.mark.parametrize("cost", [0.0, -1.0, nan, inf, (1.0, nan)])
def test_costs_are_above_0_and_finite(cost):
    with pytest.raises(ValueError, match="weight=.* must be above 0 and finite"):
        Costs(weight=cost)


@pytest.mark.parametrize("transfer", [-1.0, nan, inf])
def test_a_transfer_takes_a_finite_time(transfer):
    with pytest.raises(ValueError, match="transfer=.* must be at least 0 and finite; nearest 0"):
        Costs(transfer=transfer)


def test_schedules_and_lowering_need_no_jax():
    modules = "jaxtrain.cli.schedule_catalog, jaxtrain.pipeline.lower, jaxtrain.pipeline.picture, jaxtrain.cli.schedule"
    script = f"import sys, {modules}; jaxtrain.cli.schedule_catalog.all_schedules(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
