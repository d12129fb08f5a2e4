"""D-Adaptation against the package of its authors, and the rate that it logs."""

import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_cases import RATES, SMALL_FACTS, as_float32, build, draw_tree, follow, read_golden, steps_of
from tolerances import EXACT, FOUND_RATE, assert_close

from jaxtrain.optim.d_adaptation import DAdaptation
from jaxtrain.optim.prodigy import Prodigy

FINDERS = [  # tested together: both find a distance d, and their packages were recorded alike
    (DAdaptation(learning_rate=RATES, d0=1e-3, b2=0.99, weight_decay=0.0), "dadaptation/adam.npz"),
    (Prodigy(learning_rate=RATES, d0=1e-3, b2=0.99, weight_decay=0.3), "prodigyopt/prodigy.npz"),
]


def _name(value) -> str:
    return type(value).__name__


@pytest.mark.parametrize(("optimizer", "name"), FINDERS, ids=_name)
def test_points_and_rates_are_those_of_the_authors_package(optimizer, name):
    golden = read_golden(name)
    gradients = [as_float32(step) for step in steps_of(golden["gradient"])]
    tx = build(optimizer, rate=1.0, axes=SMALL_FACTS)
    seen = follow(
        tx,
        as_float32(golden["initial"]),
        gradients,
        lambda state, params: (params, optimizer.used_rate(state, lambda count: 1.0)),
    )
    for step, desired in enumerate(steps_of(golden["point"])):
        assert_close(seen[step][0], desired, FOUND_RATE, f"step {step}")
    found, distances = np.array([rate for _, rate in seen]), golden["distance"][""]
    assert_close(found, np.r_[1e-3, distances[:-1]], FOUND_RATE)
    assert distances[-1] > 400 * distances[0]


@pytest.mark.parametrize(("optimizer", "name"), FINDERS, ids=_name)
def test_steps_without_gradient_or_rate_leave_the_distance(optimizer, name):
    zeros = {name: np.zeros_like(x) for name, x in draw_tree(0).items()}
    rates = jnp.array([0.0, 1.0, 1.0])
    tx = optimizer.build(lambda count: rates[count], axes={name: SMALL_FACTS["vector"] for name in zeros})
    used = follow(
        tx,
        draw_tree(0),
        [draw_tree(1), zeros, zeros],
        lambda state, params: optimizer.used_rate(state, lambda count: rates[count]),
    )
    assert_close(np.array(used), np.float32([0.0, 1e-3, 1e-3]), EXACT)
