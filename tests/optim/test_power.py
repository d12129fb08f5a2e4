"""The power of the tokens read, by its closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused

from jaxtrain.optim.schedules import Constant, Power
from jaxtrain.train.phases import Phase, learning_rate, spans

POWER = Power(peak=0.02, a=0.04, b=-0.51, warmup_steps=10)


def _rate(schedule: Power, *phases: Phase, phase: int = 0):
    return learning_rate(list(spans(phases))[phase], schedule, phases)


def _phase(steps: int, rows: int, length: int = 16) -> Phase:
    return Phase(steps=steps, batch_size=rows, sequence_length=length)


def _at(rate, steps) -> np.ndarray:
    return np.array([float(rate(step)) for step in steps])


def test_the_rate_is_the_least_of_warm_up_peak_and_power():
    steps = np.array([5, 10, 11, 40, 5000])
    power = 8 * 0.04 * (steps * 8 * 16.0) ** -0.51
    expected = np.minimum(0.02 * np.minimum(steps / 10, 1), power)
    np.testing.assert_allclose(_at(_rate(POWER, _phase(10_000, 8)), steps), expected, rtol=1e-6)
    assert expected[0] == 0.01 and expected[-1] < 0.02


def test_a_run_ten_times_as_long_has_the_same_rates_up_to_the_decay():
    decaying = Power(peak=0.02, a=0.04, b=-0.51, warmup_steps=10, decay_steps=20)
    short, long = (_at(_rate(decaying, _phase(steps, 8)), range(100)) for steps in (100, 1000))
    assert (short[:80] == long[:80]).all() and (short[81:] < long[81:]).all()
    np.testing.assert_allclose(short[90], long[90] / 2, rtol=1e-6)


def test_twice_the_rows_have_twice_the_rate_at_the_same_tokens():
    free = Power(peak=1e3, a=0.04, b=-0.51)
    one, two = _rate(free, _phase(100, 8)), _rate(free, _phase(100, 16))
    assert float(two(20)) == pytest.approx(2 * float(one(40)), rel=1e-6)
    slope = np.diff(np.log(_at(one, [10, 90]))) / np.diff(np.log([10, 90]))
    assert slope == pytest.approx(-0.51, rel=1e-5)


def test_tokens_are_those_of_all_phases_before():
    free = Power(peak=1e3, a=0.04, b=-0.51)
    phases = _phase(10, 8), _phase(10, 32, 4)
    rate = _rate(free, *phases, phase=1)
    assert float(rate(15)) == pytest.approx(32 * 0.04 * (10 * 128 + 5 * 128) ** -0.51, rel=1e-6)
    own = (
        Phase(steps=3, batch_size=8, sequence_length=16),
        Phase(steps=9, batch_size=8, sequence_length=16, learning_rate=free),
    )
    last = learning_rate(list(spans(own))[1], Constant(peak=1.0), own)
    assert float(last(5)) == pytest.approx(8 * 0.04 * (2 * 128) ** -0.51, rel=1e-6)  # counted from its first step


def test_without_batches_and_with_a_rising_power_it_is_refused():
    with refused(ValueError, "batches"):
        POWER.build(100)
    with refused(ValueError, "b=0.5"):
        Power(peak=0.02, a=1.0, b=0.5)
    with refused(ValueError, "decay_steps=95", 100):
        _rate(Power(peak=0.02, a=1.0, b=-0.5, warmup_steps=10, decay_steps=95), _phase(100, 8))


def test_a_phase_may_have_a_multiple_of_the_rate():
    half = Phase(steps=10, batch_size=1, sequence_length=1, rate_factor=0.5)
    assert float(learning_rate(next(spans((half,))), Constant(peak=2.0), (half,))(jnp.int32(3))) == 1.0
    with refused(ValueError, "rate_factor=0"):
        Phase(steps=10, batch_size=1, sequence_length=1, rate_factor=0)
