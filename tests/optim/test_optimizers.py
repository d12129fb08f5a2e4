"""Every optimizer through one suite, and what each has of its own."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tiny import variant
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, EXACT, assert_close

from jaxtrain.mesh import MeshConfig, shardings
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.base import evaluation_params, transformation
from jaxtrain.optim.lion import Lion
from jaxtrain.optim.matrix import is_matrix, matrices
from jaxtrain.optim.muon import Muon, muon_dimensions
from jaxtrain.optim.schedule_free import ScheduleFree
from jaxtrain.optim.schedules import Constant
from jaxtrain.train.state import state_from_params, state_shardings

RATE, DECAY = 0.02, 0.5
RATES = Constant(peak=RATE)
ALL = [
    AdamW(learning_rate=RATES, weight_decay=DECAY),
    AdamW8bit(learning_rate=RATES, weight_decay=DECAY),
    Lion(learning_rate=RATES, weight_decay=DECAY),
    Adafactor(learning_rate=RATES, weight_decay=DECAY),
    Muon(learning_rate=RATES, weight_decay=DECAY),
    ScheduleFree(learning_rate=RATES, weight_decay=DECAY),
]
every = functools.partial(pytest.mark.parametrize, "optimizer", ids=lambda o: type(o).__name__)

# Two layers of a small network: a matrix, a projection by heads, and the vectors that decay must spare.
NAMES = {
    "up": ("layers", "embed", "mlp"),
    "query": ("layers", "embed", "heads", "head_dim"),
    "up_bias": ("layers", "mlp"),
    "query_bias": ("layers", "heads", "head_dim"),
    "scale": ("layers", "width"),
}
SHAPES = {"up": (2, 6, 8), "query": (2, 6, 2, 3), "up_bias": (2, 8), "query_bias": (2, 2, 3), "scale": (2, 6)}


def _tree(seed: int) -> dict:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def _without_decay(optimizer):
    return type(optimizer)(learning_rate=RATES, weight_decay=0.0)


def _build(optimizer, rate: float = RATE) -> optax.GradientTransformation:
    return optimizer.build(Constant(peak=rate).build(100), NAMES)


@every(ALL)
def test_descends(optimizer):
    tx, params, goal = _build(_without_decay(optimizer), rate=0.1), _tree(0), _tree(1)

    def loss(params):
        return sum(jnp.sum(jnp.square(params[name] - goal[name])) for name in params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (end, state), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=200))(params)
    assert loss(optimizer.evaluation_params(state, end)) < 0.05 * loss(params)


@every(ALL)
def test_weight_decay_shrinks_matrices_by_rate_times_decay_and_no_vector(optimizer):
    tx, params, steps = _build(optimizer), _tree(0), 10
    zeros = jax.tree.map(np.zeros_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(zeros, state, params)
        return (optax.apply_updates(params, updates), state), None

    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)
    left = _mixture_left(steps) if isinstance(optimizer, ScheduleFree) else (1 - RATE * DECAY) ** steps
    for name, before in params.items():
        desired = before * np.float32(left if is_matrix(NAMES[name]) else 1.0)
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
    tx, params = _build(optimizer, rate=0.0), _tree(0)
    updates, state = jax.jit(tx.update)(_tree(1), tx.init(params), params)
    assert_close(optax.apply_updates(params, updates), params, CLOSED_FORM)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@every([optimizer for optimizer in ALL if not isinstance(optimizer, AdamW8bit)])  # which has test_adamw_8bit.py
def test_moments_are_sharded_as_their_parameters(optimizer):
    mesh = MeshConfig(fsdp=2, tensor=2, data=2).build()
    _, shapes, names = abstract_model(variant(d_model=128, vocab_size=256))
    tx = transformation(optimizer, RATES.build(100), names, clip_norm=1.0)
    state = jax.eval_shape(lambda params: state_from_params(params, tx), shapes)
    layout = state_shardings(state, names, mesh)
    where = {path: (leaf.shape, sharding) for path, leaf, sharding in _leaves(shapes, shardings(names, shapes, mesh))}
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


def test_adamw_is_its_formula():
    optimizer, params = AdamW(learning_rate=RATES, weight_decay=DECAY), _tree(0)
    tx, gradients = _build(optimizer), [_tree(1), _tree(2)]
    state, now = tx.init(params), params
    for gradient in gradients:
        updates, state = tx.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
    for name, x in params.items():
        m = v = np.zeros_like(x, np.float64)
        x = x.astype(np.float64)
        for t, gradient in enumerate(gradients, 1):
            m = 0.9 * m + 0.1 * gradient[name]
            v = 0.95 * v + 0.05 * gradient[name].astype(np.float64) ** 2
            direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
            x = x - RATE * (direction + DECAY * is_matrix(NAMES[name]) * x)
        assert_close(now[name], x, CLOSED_FORM_LAYER, name)


def test_lion_steps_by_the_sign_of_the_interpolated_momentum():
    tx, params = _build(Lion(learning_rate=RATES, weight_decay=0.0)), _tree(0)
    first, second = _tree(1), _tree(2)
    _, state = tx.update(first, tx.init(params), params)
    updates, _ = tx.update(second, state, params)
    desired = jax.tree.map(lambda a, b: -RATE * np.sign(0.9 * 0.01 * a + 0.1 * b).astype(np.float32), first, second)
    assert_close(updates, desired, EXACT)


def test_adafactor_keeps_rows_and_columns_of_large_matrices_only():
    params = {"up": np.ones((2, 128, 256), np.float32), "scale": np.ones((2, 128), np.float32)}
    names = {"up": ("layers", "embed", "mlp"), "scale": ("layers", "width")}
    state = Adafactor(learning_rate=RATES).build(RATES.build(100), names).init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (2, 128) in shapes and (2, 256) in shapes and (2, 128, 256) not in shapes


def _as_matrices(x: np.ndarray, names: tuple) -> np.ndarray:
    """Return [R, rows, columns]: the width on one side, everything else on the other."""
    moved = np.moveaxis(np.asarray(x), names.index("embed"), 1)
    return moved.reshape(*moved.shape[:2], -1)


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (("layers", "embed", "heads", "head_dim"), (3, 32, 4, 6)),
        (("layers", "heads", "head_dim", "embed"), (3, 4, 6, 32)),
        (("layers", "embed", "mlp"), (3, 32, 48)),
    ],
)
def test_muon_orthogonalises_each_layers_matrix_as_a_whole(names, shape):
    gradient = {"w": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    params = jax.tree.map(np.zeros_like, gradient)
    tx = Muon(learning_rate=RATES, weight_decay=0.0).build(RATES.build(100), {"w": names})
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    matrices = _as_matrices(updates["w"], names) / (
        -RATE * 0.2 * max(_as_matrices(gradient["w"], names).shape[1:]) ** 0.5
    )
    singular = np.linalg.svd(matrices, compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3, singular
    assert np.linalg.cond(_as_matrices(gradient["w"], names)).min() > 3  # the gradient was far from that


def test_muon_takes_the_matrices_of_blocks_and_leaves_the_rest_to_adam():
    _, _, names = abstract_model(variant())
    taken = jax.tree.map(muon_dimensions, names, is_leaf=lambda x: isinstance(x, tuple))
    block = taken["blocks"]["blocks"][0]
    assert all(block["mixer"].values()) and all(block["mlp"].values())
    assert block["mixer"]["query"].reduction_axis == (1,) and block["mixer"]["query"].output_axis == (2, 3)
    assert block["mixer"]["output"].reduction_axis == (1, 2) and block["mixer"]["output"].output_axis == (3,)
    assert taken["embedding"]["table"] is None and taken["output"]["kernel"] is None
    assert block["mixer_norm"]["scale"] is None


def test_schedule_free_evaluates_the_average_of_its_iterates():
    optimizer = ScheduleFree(learning_rate=RATES, weight_decay=0.0)
    tx, params = _build(optimizer), _tree(0)
    state, iterates = tx.init(params), []
    for seed in range(1, 6):
        updates, state = tx.update(_tree(seed), state, params)
        params = optax.apply_updates(params, updates)
        iterates.append(state.z)
    average = jax.tree.map(lambda *z: np.mean(z, axis=0), *iterates)
    assert_close(optimizer.evaluation_params(state, params), average, CLOSED_FORM_LAYER)
    gradient_point = jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, average, state.z)
    assert_close(params, gradient_point, CLOSED_FORM_LAYER)


def test_schedule_free_is_adamw_less_its_first_moment():
    params = _tree(0)
    adamw = optax.adamw(RATES.build(100), b1=0.0, b2=0.95, weight_decay=DECAY, mask=matrices(NAMES))
    peer = optax.contrib.schedule_free(adamw, RATES.build(100), b1=0.9)

    def two_steps(tx):
        state, now = tx.init(params), params
        for seed in (1, 2):
            updates, state = tx.update(_tree(seed), state, now)
            now = optax.apply_updates(now, updates)
        return now, state

    transformations = _build(ScheduleFree(learning_rate=RATES, weight_decay=DECAY)), peer
    (end, state), (desired, peers) = jax.jit(lambda: tuple(map(two_steps, transformations)))()
    assert_close(end, desired, CLOSED_FORM_LAYER)
    kept, by_peer, size = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state, peers, params))
    assert kept < 2 * size + 10 and by_peer > 3 * size


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_the_average_is_found_behind_clipping(clip_norm):
    optimizer, params = ScheduleFree(learning_rate=RATES), _tree(0)
    tx = transformation(optimizer, RATES.build(100), NAMES, clip_norm=clip_norm)
    assert_close(evaluation_params(optimizer, tx.init(params), params), params, CLOSED_FORM)


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    optimizer = AdamW(learning_rate=RATES, b1=0.0)
    tx = transformation(optimizer, RATES.build(100), NAMES, clip_norm=0.5)
    gradient, params = jax.tree.map(lambda g: 10 * g, _tree(1)), _tree(0)
    _, state = tx.update(gradient, tx.init(params), params)
    scale = 0.5 / np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
    assert_close(state[1][0].mu, jax.tree.map(lambda g: g * scale, gradient), CLOSED_FORM)


@every(ALL[:5])
def test_other_optimizers_evaluate_the_parameters_they_train(optimizer):
    params = _tree(0)
    assert optimizer.evaluation_params(_build(optimizer).init(params), params) is params


REFUSED = [
    (AdamW, "b1", 1.0, "must be in [0, 1)"),
    (AdamW, "b2", math.nan, "must be in [0, 1)"),
    (AdamW, "epsilon", 0.0, "must be above 0"),
    (AdamW8bit, "b2", -0.1, "must be in [0, 1)"),
    (AdamW8bit, "weight_decay", -0.1, "must not be negative"),
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
