"""The delta rule, plain and gated: conformance to the recurrence, and what must not change the result."""

import pytest
from recurrent import Case, assert_conforms

CASES = [
    Case(delta=True, lengths=(1,), gate="none", values=8),
    Case(delta=True, lengths=(20, 0, 43), gate="head", heads=4, dtype="bfloat16", chunk=16),
    Case(delta=True, lengths=(5, 90, 5), gate="step", heads=4, key_heads=1, values=24),
    Case(delta=True, lengths=(257,), gate="none", dtype="bfloat16", chunk=64, rows=1),
    Case(delta=True, lengths=(257,), gate="step", chunk=16, rows=1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.gate}-{sum(c.lengths)}-{c.dtype}")
def test_output_and_gradients_are_those_of_the_recurrence(case):
    assert_conforms(case, "xla")
