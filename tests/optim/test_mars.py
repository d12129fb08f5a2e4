"""MARS against its recurrence in float64, a layer at a time, with the old gradient on this batch and on the last."""

import jax
import numpy as np
import optax
import pytest
from messages import refused
from optimizer_cases import RATES, SHAPES, build, draw_tree, follow
from tolerances import CLOSED_FORM, assert_close

from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.clip_by_block import ClipByBlock
from jaxtrain.optim.concurrent_sam import ConcurrentSAM
from jaxtrain.optim.mars import MARS
from jaxtrain.optim.muon import Muon
from jaxtrain.optim.sam import SAM


class _Follower(AdamW):
    """Moves by a hundredth of what it gets."""

    def build(self, rate, axes):
        return optax.scale(-0.01)


INNER = _Follower(learning_rate=RATES, b1=0.95)


def _corrected(g: dict, old: dict, gamma: float) -> dict:
    """Return c of the paper's eq. 8 and 9 with b1 = 0.95, each layer clipped by itself."""
    found = {}
    for name in SHAPES:
        c = np.float64(g[name]) + gamma * 19.0 * (np.float64(g[name]) - np.float64(old[name]))
        norms = np.sqrt(np.sum(c**2, axis=tuple(range(1, c.ndim)), keepdims=True))
        found[name] = c / np.maximum(norms, 1.0)
    return found


def _small(seed: int) -> dict:
    """Return gradients of which some layers exceed a norm of 1 and some do not."""
    return jax.tree.map(lambda g: g * np.float32(0.3), draw_tree(seed))


def test_the_gradient_of_the_last_step_stands_for_the_old_one():
    params, gradients = draw_tree(0), [_small(seed) for seed in range(1, 5)]
    seen = follow(build(MARS(optimizer=INNER, gamma=0.05)), params, gradients, lambda _, w: w)
    w = jax.tree.map(np.float64, params)
    for step, (g, old) in enumerate(zip(gradients, [gradients[0], *gradients], strict=False)):
        c = _corrected(g, old, 0.05)
        w = {name: w[name] - 0.01 * c[name] for name in w}
        assert_close(seen[step], jax.tree.map(np.float32, w), CLOSED_FORM, f"step {step}")


def test_exactly_it_is_the_gradient_at_the_old_parameters_on_this_batch():
    goals = [_small(seed) for seed in range(1, 5)]
    tx, params = build(MARS(optimizer=INNER, gamma=0.05, exact=True)), draw_tree(0)
    state, w, before = tx.init(params), jax.tree.map(np.float64, params), jax.tree.map(np.float64, params)
    for goal in goals:

        def gradient(params, goal=goal):
            return {name: params[name] * 0.1 - goal[name] for name in params}

        updates, state = jax.jit(lambda p, s, g=gradient: tx.update(g(p), s, p, grad_fn=g))(params, state)
        params = optax.apply_updates(params, updates)
        c = _corrected(gradient(w), gradient(before), 0.05)
        before, w = w, {name: w[name] - 0.01 * c[name] for name in w}
        assert_close(params, jax.tree.map(np.float32, w), CLOSED_FORM)


def test_without_correction_it_is_the_optimizer_with_clipped_gradients():
    inner = AdamW(learning_rate=RATES, weight_decay=0.1)
    params, gradients = draw_tree(0), [draw_tree(1), draw_tree(2)]
    clipped = [jax.tree.map(np.float32, _corrected(g, g, 0.0)) for g in gradients]
    seen = follow(build(MARS(optimizer=inner, gamma=0.0)), params, gradients, lambda _, w: w)
    assert_close(seen, follow(build(inner), params, clipped, lambda _, w: w), CLOSED_FORM)


@pytest.mark.parametrize(("exact", "count"), [(False, 1), (True, 2)])
def test_it_says_how_many_gradients_it_takes(exact, count):
    assert MARS(optimizer=INNER, exact=exact).gradients_per_step == count


def test_what_has_no_momentum_or_another_gradient_is_refused():
    with refused(ValueError, "optimizer=Adafactor", "b1"):
        MARS(optimizer=Adafactor(learning_rate=RATES))
    with refused(ValueError, "optimizer=SAM", "SAM(optimizer=MARS(...))"):
        MARS(optimizer=SAM(optimizer=AdamW(learning_rate=RATES)))
    with refused(ValueError, "optimizer=Muon", "AdamW"):
        MARS(optimizer=Muon(learning_rate=RATES))
    with refused(ValueError, "optimizer=ClipByBlock", "ClipByBlock(optimizer=MARS(...))"):
        MARS(optimizer=ClipByBlock(optimizer=INNER))


@pytest.mark.parametrize("outer", [SAM, ConcurrentSAM], ids=lambda cls: cls.__name__)
def test_gradients_at_unlike_points_are_not_compared(outer):
    with refused(ValueError, "optimizer=MARS", "exact=False"):
        outer(optimizer=MARS(optimizer=INNER, exact=True))
    assert outer(optimizer=MARS(optimizer=INNER)).gradients_per_step > 1
