"""Sharpness-aware minimization against optax's, and what it hands to the optimizer within."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import DECAY, FACTS, RATE, RATES, build, draw_tree
from tolerances import CLOSED_FORM, SAME_UPDATE, assert_close

from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.base import evaluation_params, transformation
from jaxtrain.optim.sam import SAM
from jaxtrain.optim.schedule_free import ScheduleFree

ADAMW = AdamW(learning_rate=RATES, weight_decay=DECAY)
GOAL = draw_tree(1)


def _loss(params: dict):
    return sum(jnp.sum(jnp.cos(2 * (params[name] - GOAL[name]))) for name in params)


def _descend(tx: optax.GradientTransformationExtraArgs, grad_fn, steps: int = 4) -> dict:
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(_loss)(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    params = draw_tree(0)
    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_it_is_the_one_of_optax():
    rho, gradient = 10.0, jax.grad(_loss)
    peer = optax.contrib.sam(build(ADAMW), optax.chain(optax.contrib.normalize(), optax.sgd(rho)), opaque_mode=True)
    seen = _descend(build(SAM(optimizer=ADAMW, rho=rho)), gradient)
    assert_close(seen, _descend(peer, lambda params, _: gradient(params)), SAME_UPDATE)
    assert not np.allclose(seen["up"], _descend(build(ADAMW), gradient)["up"], atol=RATE / 10)


def test_the_second_gradient_is_taken_at_a_distance_of_rho_up_the_first():
    points, params = [], draw_tree(0)
    tx = build(SAM(optimizer=ADAMW, rho=0.05))
    tx.update(GOAL, tx.init(params), params, grad_fn=lambda point: points.append(point) or GOAL)
    (point,) = points
    away = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), point, params)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in GOAL.values()))
    assert_close(away, jax.tree.map(lambda g: 0.05 * g / norm, GOAL), CLOSED_FORM)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_optimizer_gets_the_second_gradient_clipped_as_any_is(clip_norm):
    optimizer, params = SAM(optimizer=AdamW(learning_rate=RATES, b1=0.0)), draw_tree(0)
    tx = transformation(optimizer, RATES.build(100), FACTS, clip_norm=clip_norm)
    second = jax.tree.map(lambda g: -10 * g, draw_tree(2))
    _, state = tx.update(draw_tree(1), tx.init(params), params, value=1.0, grad_fn=lambda _: second)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in second.values()))
    assert_close(
        state[1][0].mu, jax.tree.map(lambda g: g * (1.0 if clip_norm is None else 0.5 / norm), second), CLOSED_FORM
    )


@pytest.mark.parametrize(
    "optimizer", [ADAMW, AdamW8bit(learning_rate=RATES), ScheduleFree(learning_rate=RATES)], ids=str
)
def test_the_state_and_the_average_are_those_of_the_optimizer_within(optimizer):
    params, wrapped = draw_tree(0), SAM(optimizer=optimizer)
    own, inner = (transformation(o, RATES.build(1), FACTS, clip_norm=1.0).init(params) for o in (wrapped, optimizer))
    assert jax.tree.structure(own) == jax.tree.structure(inner)
    assert wrapped.averages == optimizer.averages
    assert_close(evaluation_params(wrapped, own, params), evaluation_params(optimizer, inner, params), CLOSED_FORM)


def test_a_step_takes_two_gradients_and_one_more_around_another():
    assert [o.gradients_per_step for o in (ADAMW, SAM(optimizer=ADAMW), SAM(optimizer=SAM(optimizer=ADAMW)))] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan")])
def test_a_radius_that_is_none_is_refused(rho):
    with pytest.raises(ValueError, match=f"rho={rho}: must be above 0"):
        SAM(optimizer=ADAMW, rho=rho)
