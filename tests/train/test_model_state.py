"""Frozen weights, buffers, and what layers add to the loss and count, in a model that has all of them (counted.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from counted import SPEED, counted
from messages import refused
from tiny import training_batch
from tolerances import EXACT, SAME_GRADIENT, SAME_LOSS_ON_ANY_MESH, SAME_SUMS, assert_close

from jaxtrain.axes import Axes, Kind
from jaxtrain.mesh import MeshConfig
from jaxtrain.models import decoder
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.param import Buffer, merge
from jaxtrain.nn.remat import FullRemat
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import transformation, used_rate
from jaxtrain.optim.schedules import Constant
from jaxtrain.shapes import ModelState
from jaxtrain.train.frozen import fingerprint
from jaxtrain.train.gradients import Accumulate, Loss
from jaxtrain.train.hooks import Checkpoint, Evaluate, ExponentialMovingAverage, Sample
from jaxtrain.train.phases import Phase
from jaxtrain.train.state import create_state
from jaxtrain.train.step import make_train_step, step_keys

MODEL = counted()
ROWS, LENGTH = 8, 16
BATCH = training_batch(ROWS, LENGTH, vocab_size=MODEL.vocab_size)
OPTIMIZER = AdamW(learning_rate=Constant(peak=1e-2))
ALONE = MeshConfig(fsdp=1)


@functools.cache
def _one_device():
    return ALONE.build(jax.devices()[:1])


def _tx():
    return transformation(OPTIMIZER, OPTIMIZER.learning_rate.build(1), abstract_model(MODEL).axes.params, clip_norm=1.0)


def _state(mesh):
    return create_state(MODEL, _tx(), abstract_model(MODEL).axes, mesh, jax.random.key(0))


@functools.cache
def _step(microbatches: int = 1):
    step = make_train_step(
        abstract_model(MODEL).graph,
        NextToken(),
        Accumulate(microbatches=microbatches),
        _tx(),
        used_rate(OPTIMIZER, RATE),
    )
    return jax.jit(step)


RATE = OPTIMIZER.learning_rate.build(1)


def _after_step(state, batch=BATCH, *, mesh=None, microbatches: int = 1):
    with jax.set_mesh(mesh or _one_device()):
        return _step(microbatches)(state, batch, jax.random.key(1))


def _threshold(model: ModelState):
    return model.buffers["stacks"]["blocks"]["blocks"][1]["mlp"]["threshold"]


def _base(model: ModelState):
    return model.frozen["stacks"]["blocks"]["blocks"][1]["mlp"]["base"]


@pytest.fixture(scope="module")
def stepped():
    state = _state(_one_device())
    return state, *_after_step(state)


@pytest.fixture(scope="module")
def sums(stepped):
    model = merge(abstract_model(MODEL).graph, stepped[0].model)
    return jax.jit(lambda: model.hidden(BATCH).sums)()


def test_a_step_leaves_frozen_weights_and_makes_buffers_of_its_counts(stepped, sums):
    before, after, _ = stepped
    assert_close(after.model.frozen, before.model.frozen, EXACT)
    counts = sums.counts["blocks"]["1"]["mlp"]
    real = (BATCH.segment_ids > 0).sum()
    np.testing.assert_array_equal(counts["tokens"], [real, real])
    assert counts["alive"].min() > 0 and counts["alive"].max() < real
    desired = SPEED * (np.asarray(counts["alive"]) / real - 0.5)
    assert_close(_threshold(after.model), desired.astype(np.float32), SAME_SUMS)


def test_a_term_of_layers_is_added_to_the_loss_over_real_tokens_and_shown(stepped, sums):
    _, _, metrics = stepped
    term = float(sums.terms["hidden_z"])
    assert float(metrics["hidden_z"]) == pytest.approx(term / (BATCH.segment_ids > 0).sum(), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["nll"] + metrics["hidden_z"]), rel=1e-6)
    assert metrics["hidden_z"] > 1e-3


def test_a_loss_mask_does_not_change_what_a_term_of_layers_weighs(stepped):
    before, _, metrics = stepped
    masked = BATCH._replace(weights=BATCH.weights * (np.arange(LENGTH) % 2))
    assert float(_after_step(before, masked)[1]["hidden_z"]) == float(metrics["hidden_z"])


def test_sums_are_float32_whatever_the_model_computes_in(stepped):
    model = merge(abstract_model(counted(compute_dtype="bfloat16")).graph, stepped[0].model)
    sums = jax.eval_shape(lambda: model.hidden(BATCH).sums)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}


def test_a_term_of_a_layer_with_the_name_of_another_number_is_refused(stepped, monkeypatch):
    monkeypatch.setattr("counted.TERM", "gradient_norm")
    step = make_train_step(abstract_model(MODEL).graph, NextToken(), Accumulate(), _tx(), used_rate(OPTIMIZER, RATE))
    with refused(ValueError, "'gradient_norm'"):
        jax.eval_shape(step, stepped[0], BATCH, jax.random.key(1))


def test_a_buffer_that_nothing_would_replace_is_refused(monkeypatch):
    class Embedding(decoder.Embedding):
        def __init__(self, *sizes, rngs):
            super().__init__(*sizes, rngs=rngs)
            self.seen = Buffer(jnp.zeros(4), axes=Axes((None,), Kind.VECTOR, cast=False))

    monkeypatch.setattr(decoder, "Embedding", Embedding)
    with refused(ValueError, "buffer embedding.seen"):
        abstract_model(MODEL)


def test_a_skipped_step_leaves_buffers(stepped):
    before, *_ = stepped
    weights = BATCH.weights.copy()
    weights[0, 0] = np.inf
    after, metrics = _after_step(before, BATCH._replace(weights=weights))
    assert metrics["skipped_in_a_row"] == 1
    assert_close(after.model, before.model, EXACT)


def test_microbatches_add_terms_and_counts_up(stepped):
    before, whole, metrics = stepped
    parts, of_parts = _after_step(before, microbatches=4)
    assert_close(parts.model.buffers, whole.model.buffers, EXACT)
    assert float(of_parts["loss"]) == pytest.approx(float(metrics["loss"]), abs=1e-6)


def test_any_mesh_has_the_loss_and_the_buffers_of_one_device_and_shards_frozen_weights_as_parameters(stepped):
    """Frozen weights have no moments."""
    mesh, found = MeshConfig(data=2, fsdp=2, tensor=2).build(), []
    sharded = _state(mesh)
    assert _base(sharded.model).sharding.shard_shape((2, 32, 32)) == (2, 16, 32)
    assert _threshold(sharded.model).sharding.shard_shape((2, 48)) == (2, 24)
    moments = sum(leaf.size for leaf in jax.tree.leaves(sharded.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(sharded.params))
    for state, where in ((stepped[0], _one_device()), (sharded, mesh)):
        losses = []
        for seed in range(
            12, 16
        ):  # in others a unit is so near its threshold that rounding decides whether it is alive
            batch = training_batch(ROWS, LENGTH, vocab_size=MODEL.vocab_size, seed=seed)
            state, metrics = _after_step(state, batch, mesh=where)
            losses.append(metrics["loss"])
        found.append((jax.device_get(losses), runs.host_copy(state.model.buffers)))
    assert_close(found[1], found[0], SAME_LOSS_ON_ANY_MESH)


def _value_and_gradient(config, model: ModelState):
    loss = Loss.of_batch(abstract_model(config).graph, NextToken(), model, BATCH)
    keys = step_keys(jax.random.key(3), ROWS)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params, BATCH, keys)


def test_remat_counts_nothing_twice_and_changes_no_gradient(stepped):
    model = stepped[1].model
    assert_close(
        _value_and_gradient(counted(remat=FullRemat(), scan=False), model),
        _value_and_gradient(MODEL, model),
        SAME_GRADIENT,
    )


def test_taps_are_what_was_asked_for_a_layer_at_a_time(stepped):
    model = merge(abstract_model(MODEL).graph, stepped[0].model)
    asked, plain = jax.jit(lambda: (model.hidden(BATCH, taps=("block_input", "mlp_output")), model.hidden(BATCH)))()
    assert plain.taps == {}
    assert_close(asked.y, plain.y, EXACT)
    blocks = asked.taps["blocks"]
    shapes = {place: {name: x.shape for name, x in seen.items()} for place, seen in blocks.items()}
    assert shapes == dict.fromkeys(("0", "1"), dict.fromkeys(("block_input", "mlp_output"), (2, ROWS, LENGTH, 32)))
    embedded = model.embedding.table[...][BATCH.tokens]
    assert_close(blocks["0"]["block_input"][0], embedded, EXACT)


def test_a_run_with_phases_averages_evaluation_and_samples_goes_on_exactly(tmp_path):
    data = runs.write_corpus(tmp_path / "corpus")
    run = functools.partial(
        runs.tiny_run,
        data,
        model=counted(vocab_size=320),
        phases=(
            Phase(steps=4, batch_size=8, sequence_length=16),
            Phase(steps=4, batch_size=8, sequence_length=32, mesh=MeshConfig(fsdp=4, tensor=2)),
        ),
        writers=(),
    )
    hooks = (
        ExponentialMovingAverage(decay=0.5),
        Evaluate(every_steps=4, batches=2),
        Sample(every_steps=8, prompt="ab", tokens=4),
        Checkpoint(every_steps=2),
    )
    whole = runs.train(run(hooks=hooks), tmp_path / "whole")
    with pytest.raises(runs.Crash):
        runs.train(run(hooks=(*hooks, runs.CrashAfter(step=5))), tmp_path / "crashed")
    resumed = runs.train(run(hooks=hooks), tmp_path / "crashed")
    assert_close(runs.host_copy(resumed.state), runs.host_copy(whole.state), EXACT)
    assert abs(np.asarray(_threshold(resumed.state.model))).max() > 0
    [frozen] = (tmp_path / "whole" / "checkpoints" / "frozen").iterdir()
    assert frozen.name == fingerprint(whole.state.model.frozen)


def test_a_fingerprint_is_that_of_values_and_not_of_their_layout():
    tree = {"w": jnp.arange(64.0).reshape(8, 8), "codes": jnp.arange(8, dtype=jnp.int8)}
    name = fingerprint(tree)
    mesh = MeshConfig().build()
    spread = jax.device_put(tree, jax.NamedSharding(mesh, jax.P("fsdp")))
    assert fingerprint(spread) == name and len(name) == 32
    for other in (
        {**tree, "w": tree["w"].at[3, 4].add(1e-6)},
        {**tree, "w": tree["w"].T},
        {**tree, "w": tree["w"][::-1]},
        {"v": tree["w"], "codes": tree["codes"]},
        {**tree, "codes": tree["codes"].astype(jnp.int16)},
    ):
        assert fingerprint(other) != name
