"""The train step: accumulation, skipped steps, precision, donation, and a state that is created in shards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxpr_dots import dots
from tiny import DECODER, bytes_of, random_params, training_batch, variant
from tolerances import EXACT, SAME_LOSS_ON_ANY_MESH, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.objectives.base import Objective, Sums, Terms
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import transformation, used_rate
from jaxtrain.optim.sam import SAM
from jaxtrain.optim.schedules import Linear
from jaxtrain.shapes import ModelState
from jaxtrain.train.gradients import Accumulate, Loss
from jaxtrain.train.state import create_state, state_of
from jaxtrain.train.step import _after, make_train_step, step_keys

ROWS, LENGTH = 8, 12
OPTIMIZER = AdamW(learning_rate=Linear(peak=0.01, warmup_steps=4))
RATE = OPTIMIZER.learning_rate.build(20)
KEY = jax.random.key(5)
NOISY = variant(dropout=0.2)


def _batch(seed: int = 0):
    """Rows of very different weight: of four microbatches the first has none, the second is all tokens."""
    batch = training_batch(ROWS, LENGTH, vocab_size=64, seed=seed)
    batch.weights[0::4], batch.weights[1::4] = 0.0, 1.0
    return batch


def _tx(config=DECODER) -> optax.GradientTransformation:
    return transformation(OPTIMIZER, RATE, abstract_model(config).axes.params, clip_norm=1.0)


def _state(config=DECODER, tx=None):
    return state_of(ModelState(jax.tree.map(jnp.asarray, random_params(config))), tx or _tx(config))


def _step(config=DECODER, *, objective=NextToken(), microbatches: int = 1, tx=None):  # noqa: B008
    graph, _, _ = abstract_model(config)
    gradients = Accumulate(microbatches=microbatches)
    return make_train_step(graph, objective, gradients, tx or _tx(config), used_rate(OPTIMIZER, RATE))


def _value_and_gradient(microbatches: int):
    graph, _, _ = abstract_model(NOISY)

    objective = NextToken(z_loss=0.01)

    def run(params, batch):
        loss = Loss.of_batch(graph, objective, ModelState(params), batch)
        return Accumulate(microbatches=microbatches)(loss, params, batch, step_keys(KEY, ROWS))

    return jax.jit(run)(random_params(NOISY), _batch())


def test_accumulated_gradients_of_unequal_weights_are_those_of_the_whole_batch():
    weights = _batch().weights.reshape(ROWS // 4, 4, LENGTH).sum((0, 2))
    assert weights[0] == 0 and weights[1] > 2 * weights[2:].max()  # a mean of means would be far off
    ((loss, _), gradient), ((added, _), accumulated) = _value_and_gradient(1), _value_and_gradient(4)
    assert_close(added, loss, SAME_LOSS_ON_ANY_MESH)
    assert_close(accumulated, gradient, SAME_SUMS)


def test_a_batch_without_any_weight_costs_nothing_and_divides_by_nothing():
    batch = _batch()._replace(weights=np.zeros((ROWS, LENGTH), np.float32))
    state, metrics = jax.jit(_step(objective=_Squares()))(_state(), batch, KEY)
    assert metrics["loss"] == 0 and metrics["weight"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


class _Squares(Objective):
    """A loss cheap to compile. The first weight, when below 0, makes the gradient nan and leaves the loss finite."""

    def weights(self, batch) -> Sums:
        return {"nll": jnp.sum(jnp.abs(batch.weights))}

    def __call__(self, model, batch, keys) -> Terms:
        square = jnp.sum(jnp.square(model.embedding.table[...]))
        switch = jnp.where(batch.weights[0, 0] < 0, 0.0, 1.0)
        weight = jnp.sum(jnp.abs(batch.weights))
        loss = square * weight + jnp.sqrt(switch * square)
        return Terms({"nll": jnp.where(weight == 0, 0.0 * square, loss)}, {})


def _poisoned(kind: str):
    weights = np.ones((ROWS, LENGTH), np.float32)
    weights[0, 0] = {"good": 1.0, "loss": np.inf, "gradient": -1.0}[kind]
    return _batch()._replace(weights=weights)


def test_a_non_finite_loss_or_gradient_changes_nothing_is_counted_and_the_count_resets():
    step, state, seen = jax.jit(_step(objective=_Squares())), _state(), []
    for kind in ("good", "loss", "gradient", "good", "gradient"):
        before = state
        state, metrics = step(before, _poisoned(kind), KEY)
        unchanged = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before[:2], state[:2])), strict=True)]
        assert all(unchanged) if kind != "good" else not all(unchanged), kind
        assert np.isfinite(metrics["loss"]) == (kind != "loss"), kind
        assert np.isfinite(metrics["gradient_norm"]) == (kind == "good"), kind
        seen.append((int(state.step), int(state.skipped), int(state.skipped_in_a_row), float(metrics["learning_rate"])))
    rates = [float(RATE(update)) for update in (0, 1, 1, 1, 2)]  # the schedule counts updates, not steps
    assert [row[:3] for row in seen] == [(1, 0, 0), (2, 1, 1), (3, 2, 2), (4, 2, 0), (5, 3, 1)]
    assert [row[3] for row in seen] == pytest.approx(rates)


def test_a_skipped_step_leaves_later_steps_as_if_it_had_not_been():
    step = jax.jit(_step(objective=_Squares()))

    def run(kinds):
        state = _state()
        for kind in kinds:
            state, _ = step(state, _poisoned(kind), KEY)
        return state

    assert_close(run(["good", "loss", "good"])[:2], run(["good", "good"])[:2], EXACT)


def test_an_optimizer_gets_the_loss_and_the_gradient_at_any_parameters():
    """It is the one that a step from there begins with: of the same batch in microbatches, with the same dropout."""

    def moved(params):
        return jax.tree.map(lambda w: w + 0.02, params)

    def init(params):
        return params, params, jnp.float32(0)

    def update(gradient, state, params, *, value, grad_fn):
        return gradient, (gradient, grad_fn(moved(params)), value)

    tx = optax.GradientTransformationExtraArgs(init, update)
    graph, strategy = abstract_model(NOISY).graph, Accumulate(microbatches=4)
    step = jax.jit(make_train_step(graph, NextToken(), strategy, tx, lambda _: jnp.float32(0)))
    here = _state(NOISY, tx)
    there = here._replace(model=ModelState(moved(here.params)))
    (new, metrics), (from_there, _) = (step(state, _batch(), KEY) for state in (here, there))
    _, gradient, value = new.opt_state
    assert value == metrics["loss"]
    assert_close(gradient, from_there.opt_state[0], SAME_SUMS)


def _with_sam(microbatches: int = 1):
    """Return a step of SAM around AdamW, and a state for it."""
    tx = transformation(SAM(optimizer=OPTIMIZER), RATE, abstract_model(DECODER).axes.params, clip_norm=1.0)
    return _state(tx=tx), lambda objective: _step(objective=objective, tx=tx, microbatches=microbatches)


def test_sam_runs_the_model_forward_and_backward_twice():
    plain, (state, step) = _step(), _with_sam()
    assert len(dots(step(NextToken()), state, _batch(), KEY)) == 2 * len(dots(plain, state, _batch(), KEY))


class _Cliff(_Squares):
    """A loss that is not a number beyond a limit of the square, which is the first weight: other weights are 1."""

    def __call__(self, model, batch, keys) -> Terms:
        square = jnp.sum(jnp.square(model.embedding.table[...]))
        return Terms(
            {"nll": jnp.where(square > batch.weights[0, 0], jnp.nan, 1.0) * square * jnp.sum(batch.weights)}, {}
        )


def test_a_second_gradient_that_is_not_finite_skips_the_step_as_the_first_does():
    state, make = _with_sam()
    step, seen = jax.jit(make(_Cliff())), []
    for beyond in (1e3, 1.0001, 1e3, 0.9):  # the limit, in squares of now: a step up by 0.05 goes beyond the second
        square = float(jnp.sum(jnp.square(state.params["embedding"]["table"])))
        batch = _poisoned("good")
        batch.weights[0, 0] = beyond * square
        before = state
        state, metrics = step(before, batch, KEY)
        unchanged = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before[:2], state[:2])), strict=True)]
        assert all(unchanged) == (beyond < 2), beyond
        seen.append((bool(np.isfinite(metrics["loss"])), int(state.skipped), int(state.skipped_in_a_row)))
    assert seen == [(True, 0, 0), (True, 1, 1), (True, 1, 0), (False, 2, 1)]


def test_a_gradient_asked_for_in_a_loop_is_refused():
    def update(gradient, state, params, *, value, grad_fn):
        return jax.lax.fori_loop(0, 2, lambda _, g: grad_fn(g), gradient), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    step = make_train_step(abstract_model(DECODER).graph, _Squares(), Accumulate(), tx, lambda _: jnp.float32(0))
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jax.jit(step)(_state(tx=tx), _batch(), KEY)


def test_the_state_is_donated():
    state = _state()
    leaves = jax.tree.leaves(state)
    new, _ = jax.jit(_step(objective=_Squares()), donate_argnums=0)(state, _batch(), KEY)
    assert all(leaf.is_deleted() for leaf in leaves)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


@pytest.fixture(scope="module")
def compiled():
    """The whole step of the tiny decoder, donated, on one device."""
    state = _state()
    step = jax.jit(_step(), donate_argnums=0)
    return step.lower(state, _batch(), KEY).compile(), state


def test_a_donated_step_writes_over_its_input(compiled):
    step, state = compiled
    memory = step.memory_analysis()
    assert memory.alias_size_in_bytes >= bytes_of(state)
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1024  # the metrics


def test_the_loss_falls(compiled):
    step, state = compiled
    state = jax.tree.map(jnp.copy, state)
    losses = []
    for _ in range(12):
        state, metrics = step(state, _batch(), KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3
    assert float(metrics["nll"]) == losses[-1]  # no z-loss here
    assert float(metrics["weight"]) == _batch().weights.sum()


BF16 = variant(compute_dtype="bfloat16")


def test_bfloat16_compute_keeps_parameters_moments_and_gradients_in_float32():
    seen = []

    def record(updates, state, params):
        seen.extend(leaf.dtype for leaf in jax.tree.leaves(updates))
        return updates, state

    tx = optax.chain(optax.GradientTransformation(lambda params: (), record), _tx(BF16))
    state = _state(BF16, tx)
    new, metrics = jax.eval_shape(_step(BF16, tx=tx, microbatches=2), state, _batch(), KEY)
    assert set(seen) == {jnp.dtype("float32")}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new.params)} == {"float32"}
    assert metrics["loss"].dtype == jnp.float32


def test_bfloat16_compute_multiplies_weights_and_activations_in_bfloat16():
    graph, _, _ = abstract_model(BF16)

    def loss(params):
        return NextToken()(nnx.merge(graph, params), _batch(), None).minimised["nll"]

    def mixed(products):
        return [inputs for inputs, _ in products if {operand.name for operand in inputs} != {"bfloat16"}]

    forward = dots(loss, random_params(BF16))
    assert len(forward) == 12  # four projections, scores and values in two forms, three of the feed-forward layer, head
    assert not mixed(forward)
    backward = dots(jax.grad(loss), random_params(BF16))[len(forward) :]
    assert len(backward) == 2 * 8 + 2 * 5  # attention, in two forms, computes its scores again
    assert not mixed(backward)


def test_bfloat16_loss_is_close_to_the_float32_loss():
    params = random_params(DECODER)

    def loss(config):
        return Loss.of_batch(abstract_model(config).graph, NextToken(), ModelState(params), _batch())(
            params, _batch(), None
        )[0]

    full, half = jax.jit(lambda: (loss(DECODER), loss(BF16)))()
    assert full != half
    assert float(half) == pytest.approx(float(full), rel=0.01)


def test_the_key_of_a_row_depends_on_the_row_alone():
    assert_close(*(jax.random.key_data(step_keys(KEY, rows).rows)[:4] for rows in (4, 8)), EXACT)
    rows, shared = map(jax.random.key_data, step_keys(KEY, 8))
    assert len({tuple(key) for key in [*np.asarray(rows), np.asarray(shared)]}) == 9


def test_a_microbatch_count_below_one_is_refused():
    with pytest.raises(ValueError, match="microbatches=0: must be at least 1"):
        Accumulate(microbatches=0)


ODD_SIZES = variant(d_model=48, vocab_size=80)  # sizes that no shard of another parameter has


@pytest.fixture(scope="module")
def created():
    """A state created on a mesh, and the texts of the programs that created it."""
    mesh, texts, jit = MeshConfig(data=1, fsdp=2, tensor=4).build(), [], jax.jit

    def keep_text(function, **options):
        def call(*args):
            program = jit(function, **options).lower(*args).compile()
            texts.append(program.as_text())
            return program(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", keep_text)
        state = create_state(ODD_SIZES, _tx(ODD_SIZES), abstract_model(ODD_SIZES).axes, mesh, jax.random.key(0))
    return state, "\n".join(texts)


def test_every_matrix_is_created_in_shards(created):
    state, text = created
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if leaf.size > 200:
            assert leaf.size >= 2 * np.prod(leaf.sharding.shard_shape(leaf.shape)), path
            of_a_layer = leaf.shape[1:] if path[0].key == "stacks" else leaf.shape
            whole = rf"[\[,]{','.join(map(str, of_a_layer))}\]"
            assert not re.search(whole, text), f"{jax.tree_util.keystr(path)} is whole on a device"


def test_moments_are_created_where_their_parameters_are(created):
    state, _ = created
    moments = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    for moment in moments:
        assert jax.tree.map(lambda x: x.sharding, moment) == jax.tree.map(lambda x: x.sharding, state.params)


def test_values_at_creation_do_not_depend_on_the_mesh(created):
    alone = MeshConfig().build(jax.devices()[:1])
    state = create_state(ODD_SIZES, _tx(ODD_SIZES), abstract_model(ODD_SIZES).axes, alone, jax.random.key(0))
    assert_close(created[0], state, EXACT._replace(absolute=1e-7))


def test_the_update_is_ordered_by_a_barrier_but_on_one_cpu():
    for devices, barriers in ((1, 0), (2, 1)):
        with jax.set_mesh(MeshConfig().build(jax.devices()[:devices])):
            text = str(jax.make_jaxpr(_after)(jnp.ones(2), jnp.ones(3)))
        assert text.count("optimization_barrier") == barriers
