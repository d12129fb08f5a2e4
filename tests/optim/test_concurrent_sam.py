"""SAM with a stale perturbation, against its recurrence in float64."""

import jax
import numpy as np
import optax
from optimizer_cases import RATES, build, draw_tree
from tolerances import EXACT, SAME_UPDATE, assert_close

from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.concurrent_sam import ConcurrentSAM

GOALS = [draw_tree(seed) for seed in range(1, 6)]


class _Descent(AdamW):
    """Gradient descent with a rate of 0.1."""

    def build(self, rate, axes):
        return optax.scale(-0.1)


INNER = _Descent(learning_rate=RATES)


def _gradient(params: dict, goal: dict) -> dict:
    """Return the gradient of sum log(1 + (w - goal)^2) / 2."""
    far = {name: params[name] - goal[name] for name in params}
    return {name: x / (1 + x**2) for name, x in far.items()}


def _run(optimizer: ConcurrentSAM) -> list[dict]:
    tx, params, seen = build(optimizer), draw_tree(0), []
    state = tx.init(params)

    @jax.jit
    def step(params, state, goal):
        updates, state = tx.update(_gradient(params, goal), state, params, grad_fn=lambda point: _gradient(point, goal))
        return optax.apply_updates(params, updates), state

    for goal in GOALS:
        params, state = step(params, state, goal)
        seen.append(params)
    return seen


def _by_hand(rho: float, delay: int) -> list[dict]:
    path = [jax.tree.map(np.float64, draw_tree(0))]
    for step, goal in enumerate(GOALS):
        direction = _gradient(path[max(0, step - delay)], goal)
        norm = np.sqrt(sum(np.sum(g**2) for g in direction.values()))
        worst = {name: w + rho * direction[name] / norm for name, w in path[-1].items()}
        slope = _gradient(worst, goal)
        path.append({name: w - 0.1 * slope[name] for name, w in path[-1].items()})
    return [jax.tree.map(np.float32, w) for w in path[1:]]


def test_the_perturbation_is_along_the_gradient_at_older_weights():
    for delay in (1, 2):
        seen = _run(ConcurrentSAM(optimizer=INNER, rho=5.0, delay=delay))
        assert_close(seen, _by_hand(5.0, delay), SAME_UPDATE)
    assert not np.allclose(_by_hand(5.0, 0)[-1]["up"], _by_hand(5.0, 1)[-1]["up"], atol=1e-3)


def test_the_perturbation_waits_for_no_other_gradient():
    """It is computed from the older weights and the batch alone, so its program has no other input."""
    seen = []
    tx, params = build(ConcurrentSAM(optimizer=INNER)), draw_tree(0)

    def grad_fn(point):
        seen.append(point)
        return _gradient(point, GOALS[0])

    state = tx.init(params)
    tx.update(_gradient(params, GOALS[0]), state, params, grad_fn=grad_fn)
    assert seen[0] is state.stale[0]
    assert_close(seen[0], params, EXACT)
