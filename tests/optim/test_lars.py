"""LARS: the size of its steps, its formula, and where norms are 0."""

import jax
import numpy as np
import pytest
from messages import refused
from optimizer_cases import FACTS, RATE, RATES, build, draw_tree, follow
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.cautious import Cautious
from jaxtrain.optim.lars import LARS

MATRICES = [name for name, facts in FACTS.items() if facts.decays]


def _update(optimizer: LARS, gradient: dict, params: dict) -> dict:
    tx = build(optimizer, rate=1.0)
    return tx.update(gradient, tx.init(params), params)[0]


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_layer_moves_by_a_thousandth_of_its_norm_however_long_its_gradient_is(scale):
    params, gradient = draw_tree(0), jax.tree.map(lambda g: np.float32(scale) * g, draw_tree(1))
    updates = _update(LARS(learning_rate=RATES, momentum=0.0, weight_decay=0.0), gradient, params)
    for name in MATRICES:
        for layer, own in zip(np.asarray(updates[name]), params[name], strict=True):
            assert np.linalg.norm(layer) == pytest.approx(0.001 * np.linalg.norm(own), rel=1e-5)
    for name in FACTS.keys() - MATRICES:
        assert_close(updates[name], -gradient[name], CLOSED_FORM)


def test_lars_is_its_formula_with_momentum_and_decay_in_both_norms():
    optimizer, params, gradients = (
        LARS(learning_rate=RATES, trust_coefficient=0.5, weight_decay=0.5),
        draw_tree(0),
        [draw_tree(seed) for seed in range(1, 6)],
    )
    *_, seen = follow(build(optimizer), params, gradients, lambda _, params: params)
    for name, facts in FACTS.items():
        for layer, w in enumerate(np.float64(params[name])):
            v = 0.0
            for gradient in gradients:
                g = np.float64(gradient[name][layer])
                size, slope = np.linalg.norm(w), np.linalg.norm(g)
                trusted = 0.5 * size / (slope + 0.5 * size) * (g + 0.5 * w)
                v = 0.9 * v + RATE * (trusted if facts.decays else g)
                w = w - v
            assert_close(seen[name][layer], w, CLOSED_FORM_LAYER, f"{name} {layer}")


def test_zeros_have_the_step_of_momentum_and_zeros_of_both_have_none():
    zeros = jax.tree.map(np.zeros_like, draw_tree(0))
    [seen] = follow(build(LARS(learning_rate=RATES), rate=1.0), zeros, [draw_tree(1)], lambda _, params: params)
    assert_close(seen, jax.tree.map(np.negative, draw_tree(1)), CLOSED_FORM)
    assert all(not np.any(update) for update in _update(LARS(learning_rate=RATES), zeros, zeros).values())


def test_decay_cannot_be_taken_out():
    with refused(ValueError, "weight_decay=0.0005", "LARS", "set weight_decay to 0"):
        Cautious(optimizer=LARS(learning_rate=RATES))
