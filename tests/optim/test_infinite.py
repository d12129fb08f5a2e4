"""The rate of a run without an end: its parts join, and its length does not matter before the anneal."""

import dataclasses

import numpy as np
import pytest
from messages import refused

from jaxtrain.optim.schedules import Infinite

TRUNK = Infinite(peak=1e-3, warmup_steps=10, cooldown_steps=20, constant_ratio=0.5, final_ratio=0.01)


def _at(schedule: Infinite, total: int, steps) -> np.ndarray:
    return np.array([float(schedule.build(total)(step)) for step in steps])


def test_the_parts_of_the_rate_join():
    branch = dataclasses.replace(TRUNK, anneal_steps=30)
    found = _at(branch, 130, [10, 20, 30, 70, 100, 115, 130, 200])
    expected = [1e-3, 7.5e-4, 5e-4, 5e-4, 5e-4, 5e-4 * 0.02**0.5, 1e-5, 1e-5]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_rate_of_the_trunk_does_not_depend_on_its_length_and_that_of_a_branch_is_it_up_to_the_anneal():
    short, long = (_at(TRUNK, total, range(100)) for total in (100, 100_000))
    branch = _at(dataclasses.replace(TRUNK, anneal_steps=20), 100, range(100))
    assert (short == long).all() and (branch[:81] == long[:81]).all() and (np.diff(branch[80:]) < 0).all()


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"anneal_steps": 95}, ("anneal_steps=95", 100)),
        ({"anneal_steps": 75}, ("cooldown_steps=20", 15)),
        ({"final_ratio": 0.6}, ("final_ratio=0.6", "constant_ratio=0.5")),
        ({"cooldown_steps": 0}, ("cooldown_steps=0",)),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, facts):
    with refused(ValueError, *facts):
        dataclasses.replace(TRUNK, **changes).build(100)
