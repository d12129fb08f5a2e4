"""Linear attention with every kind of decay: conformance to the recurrence, and what must not change the result."""

import pytest
from recurrent import Case, assert_conforms

CASES = [
    Case(lengths=(1,), gate="none", values=8),
    Case(lengths=(20, 0, 43), gate="head", heads=4, dtype="bfloat16", chunk=16),
    Case(lengths=(5, 90, 5), gate="step", heads=4, key_heads=1, values=24),
    Case(lengths=(257,), gate="channel", heads=4, chunk=32),
    Case(lengths=(30, 1, 0, 32), gate="channel", values=8, dtype="bfloat16"),
    Case(lengths=(257,), gate="none", dtype="bfloat16", chunk=256, rows=1),
    Case(lengths=(100,), gate="step", dtype="float16", chunk=48),
    Case(lengths=(1,), gate="channel", chunk=16),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.gate}-{sum(c.lengths)}-{c.dtype}")
def test_output_and_gradients_are_those_of_the_recurrence(case):
    assert_conforms(case, "xla")
