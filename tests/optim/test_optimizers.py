"""Every optimizer through one suite."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from messages import refused
from optimizer_cases import (
    ALL,
    DECAY,
    FACTS,
    RATE,
    RATES,
    build,
    case_of,
    draw_tree,
    every,
    follow,
)
from tiny import variant
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.base import evaluation_params, transformation
from jaxtrain.optim.lamb import LAMB
from jaxtrain.optim.lion import Lion
from jaxtrain.optim.muon import Muon
from jaxtrain.optim.schedule_free import ScheduleFree
from jaxtrain.optim.schedules import Linear
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train.state import state_of, state_shardings


@every(ALL)
def test_descends(optimizer):
    tx, params, goal = build(case_of(type(optimizer), decay=0.0), rate=0.1), draw_tree(0), draw_tree(1)

    def loss(params):
        return sum(jnp.sum(jnp.square(params[name] - goal[name])) for name in params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, grad_fn=jax.grad(loss))
        return (optax.apply_updates(params, updates), state), None

    (end, state), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=200))(params)
    assert loss(optimizer.evaluation_params(state, end)) < 0.05 * loss(params)


@every(ALL)
def test_weight_decay_shrinks_matrices_by_rate_times_decay_and_no_vector(optimizer):
    tx, params, steps = build(optimizer), draw_tree(0), 10
    zeros = jax.tree.map(np.zeros_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(zeros, state, params, grad_fn=lambda _: zeros)
        return (optax.apply_updates(params, updates), state), None

    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)
    left = (1 - RATE * DECAY) ** steps
    if isinstance(optimizer, ScheduleFree):
        left = _mixture_left(steps)
    if isinstance(optimizer, LAMB):  # whose steps are of one size: all of it is decay, where the gradient is 0
        left = (1 - RATE) ** steps
    for name, before in params.items():
        desired = before * np.float32(left if FACTS[name].decays else 1.0)
        assert_close(end[name], desired, CLOSED_FORM_LAYER, name)


def _mixture_left(steps: int) -> float:
    """Return what decay leaves of schedule-free's y = 0.9 x + 0.1 z, where x averages z and z decays by y."""
    x = y = z = 1.0
    for step in range(1, steps + 1):
        z -= RATE * DECAY * y
        x += (z - x) / step
        y = 0.9 * x + 0.1 * z
    return y


@every(ALL)
def test_a_rate_of_zero_changes_nothing_and_divides_by_nothing(optimizer):
    tx, params = build(optimizer, rate=0.0), draw_tree(0)
    gradient = draw_tree(1)
    update = jax.jit(lambda state: tx.update(gradient, state, params, grad_fn=lambda _: gradient))
    updates, state = update(tx.init(params))
    assert_close(optax.apply_updates(params, updates), params, CLOSED_FORM)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@every([optimizer for optimizer in ALL if not isinstance(optimizer, AdamW8bit)])  # which has test_adamw_8bit.py
def test_moments_are_sharded_as_their_parameters(optimizer):
    mesh = MeshConfig(fsdp=2, tensor=2, data=2).build()
    _, (shapes, *_), (axes, *_) = abstract_model(variant(d_model=128, vocab_size=256))
    tx = transformation(optimizer, RATES.build(100), axes, clip_norm=1.0)
    state = jax.eval_shape(lambda params: state_of(ModelState(params), tx), shapes)
    layout = state_shardings(state, ModelState(axes), mesh)
    where = {path: (leaf.shape, sharding) for path, leaf, sharding in _leaves(shapes, shardings(axes, shapes, mesh))}
    moments = 0
    for path, leaf, sharding in _leaves(state.opt_state, layout.opt_state):
        (shape, of_parameter), *_ = [where[path[i:]] for i in range(len(path)) if path[i:] in where] or [((), None)]
        if leaf.shape == shape and of_parameter:
            assert sharding == of_parameter, path
            moments += 1
        else:  # counters, and factored moments: vectors, small beside their matrix
            assert sharding.spec == P() and leaf.size <= 2 * 2 * 256, (path, leaf.shape)
    assert moments >= 9


def _leaves(tree, others):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [(path, leaf, other) for (path, leaf), other in zip(paths, jax.tree.leaves(others), strict=True)]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_the_average_is_found_behind_clipping(clip_norm):
    optimizer, params = ScheduleFree(learning_rate=RATES), draw_tree(0)
    tx = transformation(optimizer, RATES.build(100), FACTS, clip_norm=clip_norm)
    assert_close(evaluation_params(optimizer, tx.init(params), params), params, CLOSED_FORM)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    optimizer = AdamW(learning_rate=RATES, b1=0.0)
    tx = transformation(optimizer, RATES.build(100), FACTS, clip_norm=0.5)
    gradient, params = jax.tree.map(lambda g: 10 * g, draw_tree(1)), draw_tree(0)
    _, state = tx.update(gradient, tx.init(params), params)
    scale = 0.5 / np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
    assert_close(state[1][0].mu, jax.tree.map(lambda g: g * scale, gradient), CLOSED_FORM)


@every([optimizer for optimizer in ALL if not optimizer.averages])
def test_other_optimizers_evaluate_the_parameters_they_train(optimizer):
    params = draw_tree(0)
    assert optimizer.evaluation_params(build(optimizer).init(params), params) is params


@every(ALL)
def test_the_rate_that_was_used_is_read_from_the_state(optimizer):
    rate = Linear(peak=1.0, warmup_steps=4).build(100)
    tx = optimizer.build(rate, FACTS)
    rates = follow(tx, draw_tree(0), 3 * [draw_tree(1)], lambda state, _: optimizer.used_rate(state, rate))
    assert rates == [0.0, 0.25, 0.5]


class _Uncounted(AdamW):
    """Has no count of updates in its state."""

    def build(self, rate, axes):
        return optax.sgd(0.1)


def test_an_optimizer_whose_rate_is_unknown_is_refused():
    optimizer = _Uncounted(learning_rate=RATES)
    state = optimizer.build(RATES.build(1), FACTS).init(draw_tree(0))
    with refused(ValueError, "optimizer=_Uncounted", "count", "used_rate"):
        optimizer.used_rate(state, RATES.build(1))


REFUSED = [
    (AdamW, "b1", 1.0, "must be in [0, 1)"),
    (AdamW, "b2", math.nan, "must be in [0, 1)"),
    (AdamW, "epsilon", 0.0, "must be above 0"),
    (AdamW, "epsilon", 1e-50, "must be above 0 in float32"),
    (AdamW8bit, "b2", -0.1, "must be in [0, 1)"),
    (AdamW8bit, "weight_decay", -0.1, "must not be negative"),
    (LAMB, "epsilon", 0.0, "must be above 0"),
    (LAMB, "weight_decay", -1.0, "must not be negative"),
    (Lion, "b1", 1.5, "must be in [0, 1)"),
    (Lion, "weight_decay", math.inf, "must not be negative"),
    (Adafactor, "decay_rate", 0.0, "must be above 0"),
    (Adafactor, "clipping_threshold", 0.0, "must be above 0"),
    (Muon, "momentum", 1.0, "must be in [0, 1)"),
    (Muon, "b2", 1.0, "must be in [0, 1)"),
    (ScheduleFree, "b1", 0.0, "must be above 0"),
    (ScheduleFree, "b1", 1.0, "must be in [0, 1)"),
]


@pytest.mark.parametrize(("optimizer", "field", "value", "rule"), REFUSED)
def test_a_value_that_would_end_a_run_later_is_refused_with_its_rule(optimizer, field, value, rule):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value}: {rule}")):
        optimizer(learning_rate=RATES, **{field: value})
