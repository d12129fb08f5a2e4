"""AdaMod: Adam without its average, its first rates, its formula, and no faster than Adam."""

import jax
import numpy as np
import optax
import pytest
from optimizer_cases import RATE, RATES, build, draw_tree, follow
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.adamod import AdaMod

GRADIENTS = [draw_tree(seed) for seed in range(1, 9)]


def test_without_memory_it_is_adam():
    seen, adam = (
        follow(tx, draw_tree(0), GRADIENTS, lambda _, params: params)
        for tx in (build(AdaMod(learning_rate=RATES, b3=0.0)), optax.adam(RATE))
    )
    assert_close(seen, adam, CLOSED_FORM)


def test_the_first_rates_are_a_thousandth_two_and_three_of_those_of_adam():
    ones = jax.tree.map(np.ones_like, draw_tree(0))
    points = follow(build(AdaMod(learning_rate=RATES), rate=1.0), ones, 3 * [ones], lambda _, params: params["up"])
    rates = -np.diff([np.ones_like(points[0]), *points], axis=0)[:, 0, 0, 0]
    assert rates == pytest.approx([0.001, 0.001 + 0.000999, 0.002997001], abs=2e-7)


def test_adamod_is_its_formula_and_no_element_is_faster_than_with_adam():
    params = draw_tree(0)
    *_, seen = follow(build(AdaMod(learning_rate=RATES, b3=0.9)), params, GRADIENTS, lambda _, params: params)
    slower = 0
    for name, x in params.items():
        x, m, v, s = np.float64(x), 0.0, 0.0, 0.0
        for t, gradient in enumerate(GRADIENTS, 1):
            g = np.float64(gradient[name])
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            own = RATE / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            s = 0.9 * s + 0.1 * own
            x = x - np.minimum(own, s) * m / (1 - 0.9**t)
            slower += np.sum(s < own)
        assert_close(seen[name], x, CLOSED_FORM_LAYER, name)
    assert slower > 0
