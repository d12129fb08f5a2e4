"""AdaBound: its bounds, both of its ends, and another package."""

import jax
import numpy as np
import optax
import pytest
from optimizer_cases import RATE, RATES, build, draw_tree, follow, follow_golden
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.adabound import AdaBound

GRADIENTS = [draw_tree(seed) for seed in range(1, 9)]


@pytest.mark.parametrize("amsbound", [False, True])
def test_points_are_those_of_pytorch_optimizer(amsbound):
    name = "amsbound" if amsbound else "adabound"
    optimizer = AdaBound(learning_rate=RATES, amsbound=amsbound, weight_decay=0.3)
    seen, desired = follow_golden(f"pytorch_optimizer/{name}.npz", optimizer)
    assert_close(seen, desired, CLOSED_FORM_LAYER)


@pytest.mark.parametrize(
    ("step", "bounds"), [(1, (9.99e-5, 100.1)), (1000, (0.05, 0.2)), (1_000_000, (0.0999, 0.1001))]
)
def test_the_bounds_close_on_the_final_rate(step, bounds):
    assert AdaBound(learning_rate=RATES).bounds(step, 0.001) == pytest.approx(bounds, rel=1e-4)


def test_without_bounds_it_is_adam():
    wide = AdaBound(learning_rate=RATES, gamma=1e-12, final_factor=1e-3)
    seen, adam = (
        follow(tx, draw_tree(0), GRADIENTS, lambda _, params: params) for tx in (build(wide), optax.adam(RATE))
    )
    assert_close(seen, adam, CLOSED_FORM_LAYER)


def test_in_the_end_it_is_sgd_with_momentum_at_the_final_rate():
    narrow = AdaBound(learning_rate=RATES, gamma=1e9, final_factor=0.5)
    sgd = optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.5 * RATE))
    seen, desired = (follow(tx, draw_tree(0), GRADIENTS, lambda _, params: params) for tx in (build(narrow), sgd))
    assert_close(seen, desired, CLOSED_FORM_LAYER)


def test_every_rate_is_within_the_bounds():
    optimizer = AdaBound(learning_rate=RATES, b1=0.0, gamma=0.5, final_factor=1.0)
    points = [draw_tree(0), *follow(build(optimizer), draw_tree(0), GRADIENTS, lambda _, params: params)]
    for step, (before, after, gradient) in enumerate(zip(points, points[1:], GRADIENTS, strict=False), 1):
        low, high = optimizer.bounds(step, RATE)
        rates = np.concatenate([((before[k] - after[k]) / gradient[k]).ravel() for k in gradient])
        sure = np.concatenate([np.abs(gradient[k]).ravel() for k in gradient]) > 0.1  # of which rounding hides nothing
        assert (rates[sure] > 0.999 * low).all() and (rates[sure] < 1.001 * high).all()
        assert rates[sure].max() > 1.01 * rates[sure].min()


def test_second_moments_of_amsbound_do_not_fall():
    optimizer = AdaBound(learning_rate=RATES, b2=0.5, amsbound=True)
    seen = follow(build(optimizer), draw_tree(0), GRADIENTS, lambda state, _: (state[0].v, state[0].largest))
    for (_, before), (v, after) in zip(seen, seen[1:], strict=False):
        assert all(jax.tree.leaves(jax.tree.map(lambda old, new: bool((new >= old).all()), before, after)))
        assert any(np.any(v[name] < after[name]) for name in v)
