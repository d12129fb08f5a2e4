"""The bound of the last iterate: its closed form for a constant rate, and the figures of schedules."""

import numpy as np
import pytest
from messages import refused

from jaxtrain.optim.last_iterate import cooldown_rates, last_iterate_bound, sized_cooldown


def _cosine(steps: int) -> np.ndarray:
    return (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


@pytest.mark.parametrize(("steps", "rate", "norm", "distance"), [(1, 0.1, 1.0, 1.0), (50, 0.03, 2.0, 3.0)])
def test_of_a_constant_rate_it_is_the_closed_form(steps, rate, norm, distance):
    bound = last_iterate_bound(np.full(steps, 1.0), norm, distance=distance)
    harmonic = sum(1 / k for k in range(1, steps))
    expected = distance**2 / (2 * rate * steps) + rate * norm**2 / 2 * (1 + harmonic)
    assert bound.at(rate) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rates", "short", "long"),
    [
        (lambda steps: np.ones(steps), 2.485, 3.425),
        (lambda steps: cooldown_rates(steps, steps // 5), 2.230, 2.160),
        (lambda steps: cooldown_rates(steps, steps), 2.036, 2.000),
        (_cosine, 2.091, 2.060),
    ],
    ids=["constant", "wsd20", "linear", "cosine"],
)
def test_the_best_bounds_of_schedules_of_100_and_25600_steps(rates, short, long):
    found = [last_iterate_bound(rates(steps)).least * steps**0.5 for steps in (100, 25_600)]
    assert found == pytest.approx([short, long], abs=1e-3)


def test_the_best_rate_has_the_least_bound():
    bound = last_iterate_bound(_cosine(200))
    assert bound.at(bound.best_rate) == pytest.approx(bound.least)
    assert all(bound.at(bound.best_rate * factor) > bound.least for factor in (0.5, 0.9, 1.1, 2))


def test_a_cool_down_is_as_short_as_its_bound_allows():
    steps = sized_cooldown(400, excess=0.05)
    least = last_iterate_bound(cooldown_rates(400, 400)).least
    shares = [last_iterate_bound(cooldown_rates(400, size)).least / least for size in (steps, steps - 1)]
    assert shares[0] <= 1.05 < shares[1]
    assert sized_cooldown(400, excess=0.0) > steps > sized_cooldown(400, excess=0.2)


def test_rates_that_are_none_are_refused():
    with refused(ValueError, "rates"):
        last_iterate_bound(np.zeros(3))
    with refused(ValueError, "rates"):
        last_iterate_bound(np.array([1.0, -1.0]))
