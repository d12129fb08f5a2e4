"""Every optimizer through one suite."""

import math
import re
from pathlib import Path

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
    LARGE_FACTS,
    ONE_RATE,
    RATE,
    RATES,
    build,
    case_of,
    draw_large,
    draw_tree,
    every,
    follow,
)
from tiny import matrix, variant
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, SAME_STEPS_ON_ANY_MESH, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.base import evaluation_params, transformation
from jaxtrain.optim.d_adaptation import DAdaptation
from jaxtrain.optim.gradient_noise import GradientNoise
from jaxtrain.optim.lamb import LAMB
from jaxtrain.optim.lars import LARS
from jaxtrain.optim.lion import Lion
from jaxtrain.optim.lookahead import Lookahead
from jaxtrain.optim.madgrad import MADGRAD
from jaxtrain.optim.muon import Muon
from jaxtrain.optim.prodigy import Prodigy
from jaxtrain.optim.schedule_free import ScheduleFree
from jaxtrain.optim.schedules import Constant, Linear
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train.state import state_of, state_shardings

DOCUMENT = Path(__file__).parents[2] / "docs" / "optimizers.md"


def _parabola(params: dict) -> jax.Array:
    goal = draw_tree(1)
    return sum(jnp.sum(jnp.square(params[name] - goal[name])) for name in params)


def _valley(params: dict) -> jax.Array:
    """Rosenbrock's function of each pair of neighbours along the last axis, with 5 in place of 100."""
    pairs = [(x[..., :-1], x[..., 1:]) for x in params.values()]
    return sum(jnp.sum(jnp.square(1 - x) + 5 * jnp.square(y - jnp.square(x))) for x, y in pairs)


@every(ALL)
@pytest.mark.parametrize(
    ("loss", "dtype", "left"), [(_parabola, "float32", 0.05), (_valley, "bfloat16", 0.1)], ids=["parabola", "valley"]
)
def test_descends_and_keeps_the_dtype(optimizer, loss, dtype, left):
    optimizer = case_of(type(optimizer), decay=0.0)
    tx = transformation(optimizer, Constant(peak=0.1).build(200), FACTS, clip_norm=1.0)  # some take plain steps
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw_tree(0))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, value=loss(params), grad_fn=jax.grad(loss))
        return (optax.apply_updates(params, updates), state), None

    (end, state), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=200))(params)
    assert loss(evaluation_params(optimizer, state, end)) < left * loss(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(end)} == {jnp.dtype(dtype)}


@every(ALL)
def test_a_step_is_the_same_over_a_mesh_and_where_one_axis_of_it_is_manual(optimizer):
    """Norms and matrices are those of whole parameters, wherever their shards are."""
    mesh = MeshConfig(replica=2, fsdp=2, tensor=2).build()
    tx, params = build(optimizer, axes=LARGE_FACTS), draw_large(0)
    gradients = draw_large(1), draw_large(2)

    def step(params: dict, state: optax.OptState, gradient: dict) -> tuple[dict, optax.OptState]:
        updates, state = tx.update(gradient, state, params, value=0.0, grad_fn=lambda _: gradient)
        return optax.apply_updates(params, updates), state

    desired, state = params, tx.init(params)
    for gradient in gradients:
        desired, state = jax.jit(step)(desired, state, gradient)
    layout = state_shardings(state_of(ModelState(params), tx), ModelState(LARGE_FACTS), mesh)
    where = layout.model.params, layout.opt_state
    apart = jax.shard_map(step, in_specs=P(), out_specs=P(), axis_names={"replica"}, check_vma=False)
    with jax.set_mesh(mesh):
        found, state = jax.device_put((params, tx.init(params)), where)
        for run, gradient in zip((step, apart), gradients, strict=True):
            found, state = jax.jit(run, out_shardings=where)(found, state, jax.device_put(gradient, where[0]))
    assert_close(found, desired, SAME_STEPS_ON_ANY_MESH)


@every([optimizer for optimizer in ALL if not isinstance(optimizer, GradientNoise)])  # whose noise moves, too
def test_weight_decay_shrinks_matrices_by_rate_times_decay_and_no_vector(optimizer):
    tx, params, steps = build(optimizer), draw_tree(0), 10
    zeros = jax.tree.map(np.zeros_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(zeros, state, params, value=0.0, grad_fn=lambda _: zeros)
        return (optax.apply_updates(params, updates), state), None

    (end, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps))(params)
    left = LEFT_BY_DECAY.get(type(optimizer), lambda steps: (1 - RATE * DECAY) ** steps)(steps)
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


def _anchored_left(steps: int) -> float:
    """Return what decay leaves of a weight that MADGRAD's momentum pulls back to 1, from where nothing moves it."""
    left = 1.0
    for _ in range(steps):
        left = 0.9 * left + 0.1 - RATE * DECAY * left
    return left


def _with_momentum_left(steps: int) -> float:
    """Return what decay leaves where a step is the rate times the weights and LARS's coefficient, with momentum."""
    left, momentum = 1.0, 0.0
    for _ in range(steps):
        momentum = 0.9 * momentum + RATE * case_of(LARS, DECAY).trust_coefficient * left
        left -= momentum
    return left


def _found_left(steps: int) -> float:
    """Return what decay leaves at the distance that is found without a gradient, which is the first."""
    return (1 - 0.1 * RATE * DECAY) ** steps


LEFT_BY_DECAY = {
    DAdaptation: _found_left,
    LARS: _with_momentum_left,
    MADGRAD: _anchored_left,
    Prodigy: _found_left,
    ScheduleFree: _mixture_left,
    Lookahead: lambda steps: (0.5 + 0.5 * (1 - RATE * DECAY) ** 5) ** (steps // 5),
    LAMB: lambda steps: (1 - RATE) ** steps,  # steps are of one size: all of it is decay, where the gradient is 0
}


@every(ALL)
def test_a_rate_of_zero_changes_nothing_and_divides_by_nothing(optimizer):
    tx, params = build(optimizer, rate=0.0), draw_tree(0)
    gradient = draw_tree(1)
    update = jax.jit(lambda state: tx.update(gradient, state, params, value=0.0, grad_fn=lambda _: gradient))
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


@every([optimizer for optimizer in ALL if not isinstance(optimizer, ONE_RATE)])  # tests/optim/test_d_adaptation.py
def test_the_rate_that_was_used_is_read_from_the_state(optimizer):
    rate = Linear(peak=1.0, warmup_steps=4).build(100)
    tx = optimizer.build(rate, FACTS)
    rates = follow(tx, draw_tree(0), 3 * [draw_tree(1)], lambda state, _: optimizer.used_rate(state, rate))
    assert rates == [0.0, 0.25, 0.5]


def test_a_moment_of_a_parameter_called_count_is_no_count():
    state = ({"count": jnp.float32(7)}, {"count": jnp.ones(3)}, optax.ScaleByScheduleState(jnp.int32(2)))
    assert AdamW(learning_rate=RATES).used_rate(state, lambda count: 0.5 * count) == 0.5


class _Uncounted(AdamW):
    """Has no count of updates in its state."""

    def build(self, rate, axes):
        return optax.sgd(0.1)


def test_an_optimizer_whose_rate_is_unknown_is_refused():
    optimizer = _Uncounted(learning_rate=RATES)
    state = optimizer.build(RATES.build(1), FACTS).init(draw_tree(0))
    with refused(ValueError, "optimizer=_Uncounted", "count", "used_rate"):
        optimizer.used_rate(state, RATES.build(1))


def _documented(column: int) -> dict[str, str]:
    """Return a column of the tables in docs/optimizers.md, by class."""
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): row[column].strip() for row in rows}


@every([optimizer for optimizer in ALL if not isinstance(optimizer, Wrapper)])
def test_the_state_of_a_matrix_has_the_bytes_that_are_documented(optimizer):
    shape = jax.ShapeDtypeStruct((4, 2048, 1024), jnp.float32)
    state = jax.eval_shape(build(optimizer, axes={"up": matrix("repeats", "embed", "mlp")}).init, {"up": shape})
    found = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / shape.size
    assert round(found, 2) == float(_documented(1)[type(optimizer).__name__])
    for stated in re.findall(r"The state has (\d+) bytes a parameter", type(optimizer).__doc__):
        assert round(found, 2) == float(stated)


@every(ALL)
def test_what_it_costs_in_gradients_is_documented(optimizer):
    documented = int(_documented(2)[type(optimizer).__name__]) if isinstance(optimizer, Wrapper) else 1
    assert optimizer.gradients_per_step == documented


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
    (MADGRAD, "epsilon", 0.0, "must be above 0"),
    (Prodigy, "d0", 0.0, "must be above 0"),
    (Muon, "momentum", 1.0, "must be in [0, 1)"),
    (Muon, "b2", 1.0, "must be in [0, 1)"),
    (ScheduleFree, "b1", 0.0, "must be above 0"),
    (ScheduleFree, "b1", 1.0, "must be in [0, 1)"),
]


@pytest.mark.parametrize(("optimizer", "field", "value", "rule"), REFUSED)
def test_a_value_that_would_end_a_run_later_is_refused_with_its_rule(optimizer, field, value, rule):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value}: {rule}")):
        optimizer(learning_rate=RATES, **{field: value})
