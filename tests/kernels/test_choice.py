"""Which implementation of an operation runs a call."""

import pytest
from jaxtrain_kernels.choice import Implementation, choose

SMALL = Implementation(name="small", run=min, refuses=lambda size: () if size < 4 else ("it is large", "and wide"))
EVEN = Implementation(name="even", run=min, refuses=lambda size: ("it is odd",) if size % 2 else ())
NEW = Implementation(name="new", run=max, proven=False)


def test_the_first_proven_one_that_takes_the_call_runs_and_others_must_be_named():
    assert choose("sort", (NEW, SMALL, EVEN), None, 2) is SMALL
    assert choose("sort", (NEW, SMALL, EVEN), None, 8) is EVEN
    assert choose("sort", (NEW, SMALL, EVEN), "new", 8) is NEW


def test_a_call_that_none_takes_is_refused_with_the_reasons_of_each():
    with pytest.raises(NotImplementedError, match="small: it is large, and wide; even: it is odd$"):
        choose("sort", (NEW, SMALL, EVEN), None, 9)
    with pytest.raises(NotImplementedError, match="this call. even: it is odd$"):
        choose("sort", (NEW, SMALL, EVEN), "even", 3)
