"""Phases whose sequences grow: the tokens of a step stay, and rates are in proportion to batches where asked."""

import dataclasses

import pytest
from messages import refused

from jaxtrain.optim.schedules import Constant, Linear
from jaxtrain.train.lengths import grow_length, multigrid
from jaxtrain.train.phases import Phase, learning_rate, spans, total_steps

LAST = Phase(steps=42, batch_size=4, sequence_length=64)


def test_lengths_grow_at_the_same_tokens_a_step_and_the_rate_goes_on():
    phases = grow_length(LAST, (16, 32, 64))
    assert [(p.batch_size, p.sequence_length, p.steps) for p in phases] == [(16, 16, 14), (8, 32, 14), (4, 64, 14)]
    assert {phase.tokens_per_step for phase in phases} == {LAST.tokens_per_step}
    schedule = Linear(peak=1.0, warmup_steps=5)
    whole = schedule.build(42)
    for span in spans(phases):
        rate = learning_rate(span, schedule, phases)
        assert [float(rate(step)) for step in (span.first, span.end)] == [
            float(whole(s)) for s in (span.first, span.end)
        ]


def test_the_long_cycles_of_multigrid_keep_the_tokens_and_scale_the_rate_with_the_batch():
    phases = multigrid(LAST, cycles=2)
    assert total_steps(phases) == 42
    assert [phase.batch_size for phase in phases] == [32, 16, 8, 4] * 2
    assert [phase.sequence_length for phase in phases] == [8, 16, 32, 64] * 2
    assert {phase.tokens_per_step for phase in phases} == {LAST.tokens_per_step}
    rates = [float(learning_rate(span, Constant(peak=0.5), phases)(span.first)) for span in spans(phases)]
    assert rates == [0.5 * phase.batch_size / LAST.batch_size for phase in phases]
    assert {phase.rate_factor for phase in multigrid(LAST, scale_rate=False)} == {1.0}


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: grow_length(LAST, (16, 32)), ("lengths=(16, 32)", "sequence_length=64")),
        (lambda: grow_length(LAST, (32, 16, 64)), ("lengths=(32, 16, 64)",)),
        (lambda: grow_length(LAST, (24, 64)), (24, 256)),
        (lambda: grow_length(dataclasses.replace(LAST, steps=1), (32, 64)), ("steps=1",)),
        (lambda: multigrid(dataclasses.replace(LAST, sequence_length=60)), ("sequence_length=60", 8)),
        (lambda: multigrid(LAST, cycles=0), ("cycles=0",)),
    ],
)
def test_what_has_no_such_phases_is_refused(make, facts):
    with refused(ValueError, *facts):
        make()
