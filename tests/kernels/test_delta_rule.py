"""The delta rule, plain and gated: conformance to the recurrence, and what must not change the result."""

import pytest
from ahead_of_time import TPUS, compile_for
from compiled_kernels import kernels_in
from interpreted import interpreted
from recurrent import Case, assert_conforms, results_and_gradients, shapes_of

CASES = [
    Case(delta=True, lengths=(1,), gate="none", values=8),
    Case(delta=True, lengths=(20, 0, 43), gate="head", heads=4, dtype="bfloat16", chunk=16),
    Case(delta=True, lengths=(5, 90, 5), gate="step", heads=4, key_heads=1, values=24),
    Case(delta=True, lengths=(257,), gate="none", dtype="bfloat16", chunk=64, rows=1),
    Case(delta=True, lengths=(257,), gate="step", keys=64, chunk=64, rows=1),
    Case(delta=True, lengths=(257,), gate="none", chunk=256, rows=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.gate}-{sum(c.lengths)}-{c.dtype}")
def test_output_and_gradients_are_those_of_the_recurrence(case):
    assert_conforms(case, "xla")


INTERPRETED = [
    Case(delta=True, lengths=(5, 0, 20), gate="step", heads=2, key_heads=1, values=24, rows=1, chunk=16),
    Case(delta=True, lengths=(63,), gate="none", heads=1, key_heads=1, rows=1, dtype="bfloat16", chunk=48),
]


@pytest.mark.parametrize("case", INTERPRETED, ids=lambda c: f"{c.gate}-{sum(c.lengths)}-{c.dtype}")
def test_tpu_kernels_conform_in_an_interpretation_with_races_and_poisoned_memory(case):
    with interpreted("tpu"):
        assert_conforms(case, "tpu")


@pytest.mark.parametrize(("topology", "chunk"), [(TPUS[0], 64), (TPUS[1], 16), (TPUS[2], 128), (TPUS[3], 64)])
def test_tpu_kernels_compile_and_each_is_in_the_program_once(topology, chunk):
    case = Case(delta=True, lengths=(256,), gate="step", rows=1, chunk=chunk)
    compiled = compile_for(topology, results_and_gradients(case, "tpu"), shapes_of(case))
    assert kernels_in(compiled) == {f"delta_rule_{part}": 1 for part in ("forward", "states", "backward")}


def test_gpu_kernels_conform_in_an_interpretation():
    case = Case(
        delta=True, lengths=(20, 0, 50), gate="step", key_heads=1, rows=1, keys=128, values=64, dtype="bfloat16"
    )
    with interpreted("gpu"):
        assert_conforms(case, "gpu")
