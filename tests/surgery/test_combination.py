"""Linear combinations of checkpoints: cases that are known, and a search."""

import math

import jax
import numpy as np
import pytest
from messages import refused
from tiny import DECODER, random_model
from tolerances import AVERAGE, EXACT, assert_close

from jaxtrain.models.decoder import abstract_model
from jaxtrain.surgery.merging import Combination, evolved, merged, moving_average

PARENTS = [random_model(DECODER, seed).params for seed in range(4)]
_, (SHAPES, *_), (AXES, *_) = abstract_model(DECODER)


def _combined(*coefficients: float) -> dict:
    merge = Combination(coefficients=coefficients)
    return jax.tree.map(lambda leaf: leaf.read(), merged(merge, PARENTS, AXES, SHAPES))


def test_one_checkpoint_alone_comes_back_bit_for_bit():
    for index in range(4):
        assert_close(_combined(*np.eye(4)[index]), PARENTS[index], EXACT)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_a_moving_average_has_its_closed_form(decay):
    average = jax.tree.map(np.float64, PARENTS[0])
    for params in PARENTS[1:]:
        average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * np.float64(w), average, params)
    assert_close(_combined(*moving_average(decay, 4)), jax.tree.map(np.float32, average), AVERAGE)


def test_a_negative_coefficient_goes_beyond():
    beyond = jax.tree.map(lambda a, b: np.float32(1.5 * np.float64(b) - 0.5 * np.float64(a)), *PARENTS[2:])
    assert_close(_combined(0.0, 0.0, -0.5, 1.5), beyond, AVERAGE)


def test_coefficients_that_are_no_combination_are_refused():
    with refused(ValueError, "coefficients=(0.5, 0.6)", "add up to 1"):
        Combination(coefficients=(0.5, 0.6))
    with refused(ValueError, "coefficients=(0.5, 0.5)", "4 parents"):
        _combined(0.5, 0.5)


def _noisy_descent(seed: int) -> np.ndarray:
    """Return checkpoints of stochastic gradient descent on |x|^2 / 2, whose optimum is 0."""
    random = np.random.default_rng(seed)
    x, found = np.full(20, 3.0), []
    for step in range(80):
        x = x - 0.3 * (x + random.normal(size=20))
        if step % 8 == 7:
            found.append(x)
    return np.stack(found)


@pytest.mark.parametrize("seed", range(5))
def test_a_search_beats_the_last_iterate_and_every_average_it_begins_with(seed):
    path, asked = _noisy_descent(seed), []
    last = (0.0,) * 9 + (1.0,)
    seeds = [last, moving_average(0.5, 10), moving_average(0.8, 10)]

    def loss(coefficients):
        asked.append(coefficients)
        return float(np.sum((np.array(coefficients) @ path) ** 2))

    best = evolved(loss, seeds, evaluations=200)
    assert len(asked) == 200
    assert abs(sum(best) - 1) < 1e-9
    assert loss(best) < 0.8 * min(map(loss, seeds))


def test_a_search_of_nothing_but_its_seeds_takes_the_best_of_them():
    seeds = [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    assert evolved(lambda own: abs(own[0] - 0.4), seeds, evaluations=3) == (0.5, 0.5)


def test_a_loss_that_is_no_number_is_the_worst():
    seeds = [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    best = evolved(lambda own: math.nan if own == (0.0, 1.0) else abs(own[0] - 0.4), seeds, evaluations=3)
    assert best == (0.5, 0.5)


def test_a_search_of_one_checkpoint_is_refused():
    with refused(ValueError, "two checkpoints or more"):
        evolved(lambda _: 0.0, [(1.0,)], evaluations=5)
