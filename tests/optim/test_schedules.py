"""Learning rates at known steps."""

import dataclasses
import math

import jax
import pytest
from messages import refused
from tolerances import SCHEDULE

from jaxtrain.cli.config_types import subclasses
from jaxtrain.optim.schedules import (
    BoundedDecay,
    Constant,
    Continued,
    Cosine,
    Infinite,
    InverseSquareRoot,
    Linear,
    OneCycle,
    Power,
    Refined,
    Rewarm,
    Schedule,
    WarmupStableDecay,
)
from jaxtrain.optim.schedules.base import Batches

TOTAL = 100
BATCHES = Batches(rows=4, tokens=lambda count: 64.0 * count)
ALL = [
    Constant(peak=2.0, warmup_steps=10),
    Cosine(peak=2.0, warmup_steps=10),
    Linear(peak=2.0, warmup_steps=10),
    WarmupStableDecay(peak=2.0, warmup_steps=10, decay_steps=20),
    InverseSquareRoot(peak=2.0, warmup_steps=10),
    OneCycle(peak=2.0, warmup_steps=10, final_steps=20, first_ratio=0.0),
    Power(peak=2.0, warmup_steps=10, a=200.0, b=-0.5),
    Infinite(peak=2.0, warmup_steps=10, cooldown_steps=20),
    Rewarm(peak=2.0, warmup_steps=10, begin=0.0),
    BoundedDecay(peak=2.0, warmup_steps=10),
]


def _close(desired: float):
    return pytest.approx(desired, rel=SCHEDULE.relative, abs=1e-7)


@pytest.mark.parametrize("schedule", ALL, ids=type)
def test_every_schedule_warms_up_in_a_straight_line_to_its_peak(schedule):
    rate = schedule.build(TOTAL, BATCHES)
    assert [float(rate(step)) for step in (0, 1, 5, 10)] == [_close(v) for v in (0.0, 0.2, 1.0, 2.0)]


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (Constant(peak=2.0, warmup_steps=10), {11: 2.0, 100: 2.0, 1000: 2.0}),
        (
            Cosine(peak=2.0, warmup_steps=10, final_ratio=0.1),
            {55: 1.1, 32.5: 0.2 + 0.9 * (1 + math.cos(math.pi / 4)), 100: 0.2, 150: 0.2},
        ),
        (Linear(peak=2.0, warmup_steps=10, final_ratio=0.5), {55: 1.5, 100: 1.0, 150: 1.0}),
        (Linear(peak=2.0, warmup_steps=10), {55: 1.0, 99: 2 / 90, 100: 0.0}),
        (
            WarmupStableDecay(peak=2.0, warmup_steps=10, decay_steps=20, final_ratio=0.1),
            {11: 2.0, 80: 2.0, 90: 1.1, 100: 0.2, 150: 0.2},
        ),
        (InverseSquareRoot(peak=2.0, warmup_steps=10), {40: 1.0, 90: 2 / 3, 1000: 0.2}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_after_the_warm_up_a_schedule_has_its_known_values(schedule, steps):
    rate = schedule.build(TOTAL, BATCHES)
    assert {step: float(rate(step)) for step in steps} == {step: _close(value) for step, value in steps.items()}


@pytest.mark.parametrize("schedule", [Constant(peak=2.0), Cosine(peak=2.0), Linear(peak=2.0)], ids=type)
def test_without_warm_up_the_first_step_has_the_peak(schedule):
    assert float(schedule.build(TOTAL, BATCHES)(0)) == 2.0


def test_every_schedule_is_in_this_suite():
    own = {cls for cls in subclasses(Schedule).values() if cls.__module__.startswith("jaxtrain.")}
    assert {type(schedule) for schedule in ALL} == own - {Continued, Refined}  # with warm-ups of their own, or none


@pytest.mark.parametrize("schedule", ALL, ids=type)
def test_a_warm_up_longer_than_the_run_is_refused_and_one_as_long_is_not(schedule):
    schedule = dataclasses.replace(schedule, warmup_steps=80)
    if isinstance(schedule, OneCycle | Infinite):  # have more steps than those of the warm-up
        schedule = dataclasses.replace(
            schedule, **{("final" if isinstance(schedule, OneCycle) else "cooldown") + "_steps": 1}
        )
    assert float(schedule.build(100, BATCHES)(79)) == _close(2.0 * 79 / 80)
    with refused(ValueError, "warmup_steps=80", 79):
        schedule.build(79, BATCHES)


def test_a_schedule_that_decays_all_the_way_fits_exactly():
    rate = WarmupStableDecay(peak=2.0, warmup_steps=10, decay_steps=90).build(TOTAL)
    assert float(rate(10)) == 2.0 and float(rate(55)) == _close(1.0)


def test_warm_up_and_decay_that_exceed_the_run_are_refused():
    with refused(ValueError, "warmup_steps=10", "decay_steps=91", 100):
        WarmupStableDecay(peak=2.0, warmup_steps=10, decay_steps=91).build(TOTAL)


@pytest.mark.parametrize("schedule", ALL, ids=type)
def test_a_schedule_can_be_traced(schedule):
    rate = schedule.build(TOTAL, BATCHES)
    assert float(jax.jit(rate)(37)) == _close(float(rate(37)))


@pytest.mark.parametrize(("field", "value"), [("peak", -1.0), ("peak", math.nan), ("warmup_steps", -1)])
@pytest.mark.parametrize("schedule", ALL, ids=type)
def test_negative_rates_and_warm_ups_are_refused(schedule, field, value):
    with pytest.raises(ValueError, match=f"{field}={value}: must not be negative"):
        dataclasses.replace(schedule, **{field: value})


@pytest.mark.parametrize("schedule", [ALL[1], ALL[2], ALL[3]], ids=type)
def test_a_schedule_ends_between_nothing_and_its_peak(schedule):
    with pytest.raises(ValueError, match=r"final_ratio=1.5: must be in \[0, 1\]"):
        dataclasses.replace(schedule, final_ratio=1.5)


def test_a_negative_decay_is_refused():
    with pytest.raises(ValueError, match="decay_steps=-1: must not be negative"):
        WarmupStableDecay(peak=1.0, decay_steps=-1)
