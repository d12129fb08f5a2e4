"""RAdam: the length of its average, the rectifier, the steps before it, and torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from messages import refused
from optimizer_cases import RATE, RATES, build, draw_tree, follow, follow_golden
from tolerances import CLOSED_FORM_LAYER, RECTIFIER, assert_close

from jaxtrain.optim.radam import RAdam, length, rectifier


def _formulas(steps: np.ndarray, b2: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rho_t and r_t by the paper, in float64."""
    t, most = steps.astype(np.float64), 2 / (1 - b2) - 1
    rho = most - 2 * t * b2**t / (1 - b2**t)
    squared = (rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)
    return rho, np.sqrt(np.where(rho > 4, squared, 0.0))


@pytest.mark.parametrize("b2", [0.9, 0.95, 0.99, 0.999, 0.9999])
def test_length_and_rectifier_are_exact_in_float32(b2):
    steps = np.unique(np.r_[1:200, np.logspace(2, 6, 200)].astype(np.int32))
    rho, r = _formulas(steps, b2)
    assert_close(jax.vmap(lambda step: length(step, b2))(steps), rho, RECTIFIER)
    assert_close(jax.vmap(lambda step: rectifier(step, b2))(steps), r, RECTIFIER)


def test_the_figures_of_the_paper():
    first, later = [float(length(jnp.int32(step), 0.999)) for step in range(1, 6)], (6, 100_000)
    assert first == pytest.approx([1.000, 2.000, 2.999, 3.998, 4.996], abs=1e-3)
    assert [float(rectifier(jnp.int32(step), 0.999)) for step in later] == pytest.approx([0.02582, 1.0], abs=5e-6)
    assert [bool(rectifier(jnp.int32(step), 0.999) > 0) for step in range(1, 7)] == [False] * 4 + [True] * 2


def test_the_first_four_steps_are_those_of_the_momentum():
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in range(1, 6)]
    momentum = optax.chain(optax.ema(0.9, debias=True), optax.scale(-RATE))
    seen, desired = (
        follow(tx, params, gradients, lambda _, params: params)
        for tx in (build(RAdam(learning_rate=RATES, weight_decay=0.0)), momentum)
    )
    assert_close(seen[:4], desired[:4], CLOSED_FORM_LAYER)
    assert not np.allclose(seen[4]["up"], desired[4]["up"], atol=1e-3)


def test_steps_are_those_of_torch_but_the_fifth():
    """Which torch does not rectify, so points differ from there on and are compared by how far they move."""
    seen, desired = follow_golden("torch/radam.npz", RAdam(learning_rate=RATES, weight_decay=0.3))
    seen, desired = (jax.tree.map(lambda *x: np.stack(x), *points) for points in (seen, desired))
    assert_close(*(jax.tree.map(lambda x: x[:4], points) for points in (seen, desired)), CLOSED_FORM_LAYER)
    moved, expected = (np.diff(points["vector"], axis=0)[4:] for points in (seen, desired))  # which does not decay
    assert_close(moved, expected, CLOSED_FORM_LAYER)


def test_a_decay_with_which_no_step_is_rectified_is_refused():
    with refused(ValueError, "b2=0.6", "above 0.6", "0.999"):
        RAdam(learning_rate=RATES, b2=0.6)
