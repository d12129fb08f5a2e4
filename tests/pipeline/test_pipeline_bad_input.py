"""Numbers that do not fit a schedule: one line with the rule and the nearest valid value."""

import subprocess
import sys

import pytest

from jaxtrain.cli.schedule_catalog import parse


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
        ("GPipe", 4, 0, "microbatches=0 must be at least 1"),
        ("ZBH1", 0, 4, "stages=0 must be at least 1"),
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
        ("Interleave", "there is no schedule `Interleave`; did you mean `Interleaved`"),
        ("xyz", "there is no schedule `xyz`; known: BitPipe, "),
        ("ZBSearch(memory=8)", "ZBSearch has no parameter `memory`; did you mean `memory_limit`"),
        ("Interleaved(chunk=2)", "Interleaved has no parameter `chunk`; known: chunks_per_stage"),
        ("GPipe(depth=2)", "GPipe has no parameter `depth`; known: none"),
        ("Interleaved(2)", "write a name and named parameters"),
        ("1F1B", "`1F1B` is no schedule; write"),
        ("Interleaved(chunks_per_stage=open('x'))", "write a name and named parameters"),
        ("Interleaved(chunks_per_stage=open())", "there is no schedule `open`"),
        ("ZBSearch(memory_limit=-1)", "memory_limit=-1 must be at least 1"),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused_with_the_nearest_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text).table(4, 8)


def test_schedules_and_lowering_need_no_jax():
    modules = "jaxtrain.cli.schedule_catalog, jaxtrain.pipeline.lower, jaxtrain.pipeline.picture, jaxtrain.cli.schedule"
    script = f"import sys, {modules}; jaxtrain.cli.schedule_catalog.all_schedules(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
