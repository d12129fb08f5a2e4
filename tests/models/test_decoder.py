"""What must hold of every decoder: causal, independent of packing, the same with scan on or off and in blocks."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jaxtrain_kernels.flash_attention import xla
from tiny import DECODER, PRESETS, packed_batch, random_params, training_batch, variant
from tolerances import CLOSED_FORM_LAYER, EXACT, SAME_GRADIENT, SAME_LOGITS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.stacks import MOST_UNROLLED
from jaxtrain.nn.embeddings import LearnedPositions, NormalisedEmbedding, ScaledEmbedding, TokenEmbedding
from jaxtrain.nn.heads import TiedHead
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.remat import FullRemat
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.shapes import Batch
from jaxtrain.train.step import step_keys

ROWS, LENGTH, VOCAB = 4, 80, 320  # longer than the windows of the presets


@functools.cache
def _forward(name: str):
    """Compile one program a preset; every test gives it batches of the same shape."""
    config = PRESETS[name]
    return functools.partial(_compiled(config), random_params(config))


def _compiled(config: DecoderConfig):
    graph, _, _ = abstract_model(config)

    def forward(params, batch, keys=None):
        return nnx.merge(graph, params)(batch, keys)

    return jax.jit(forward)


def _whole_rows(seed: int = 0) -> Batch:
    return packed_batch([[LENGTH]] * ROWS, LENGTH, vocab_size=VOCAB, seed=seed)


@pytest.mark.parametrize("name", PRESETS)
def test_causality(name):
    batch, places = _whole_rows(), np.array([0, 1, 40, LENGTH - 1])
    changed = batch.tokens.copy()
    changed[np.arange(ROWS), places] += 1
    before, after = (np.asarray(_forward(name)(b)) for b in (batch, batch._replace(tokens=changed % VOCAB)))
    for row, place in enumerate(places):
        assert_close(after[row, :place], before[row, :place], EXACT, "a later token changed an earlier logit")
        assert (after[row, place] != before[row, place]).any()


@pytest.mark.parametrize("name", PRESETS)
def test_packing_independence(name):
    lengths = [[33, 40, 5], [33], [40], [5]]
    batch = packed_batch(lengths, LENGTH, vocab_size=VOCAB)
    start = 0
    for row, size in enumerate(lengths[0], 1):  # rows 1, 2, 3 hold the documents of row 0 alone
        batch.tokens[row, :size] = batch.tokens[0, start : start + size]
        start += size
    logits, start = np.asarray(_forward(name)(batch)), 0
    for row, size in enumerate(lengths[0], 1):
        assert_close(logits[0, start : start + size], logits[row, :size], SAME_LOGITS, f"document {row}")
        start += size


def test_a_window_bounds_how_far_a_token_reaches():
    batch = _whole_rows()
    changed = batch.tokens.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    reach = 2 * (32 - 1)  # two layers, each of which looks back at 31 others
    difference = abs(_forward("mistral")(batch) - _forward("mistral")(batch._replace(tokens=changed))).max(axis=(0, 2))
    assert difference[reach] > 0 and difference[reach + 1 :].max() == 0


@pytest.mark.parametrize("name", PRESETS)
def test_blocks_of_queries_change_nothing(name, monkeypatch):
    batch = training_batch(ROWS, LENGTH, vocab_size=VOCAB)
    monkeypatch.setattr(xla, "CPU", xla.Sizes(rows=1, queries=24, keys=32, written_out=16))  # read while tracing
    blocked = _compiled(PRESETS[name])(random_params(PRESETS[name]), batch)
    monkeypatch.undo()
    documents = batch.segment_ids > 0
    assert_close(blocked[documents], _forward(name)(batch)[documents], SAME_LOGITS)


def test_logits_are_capped_softly():
    config = dataclasses.replace(PRESETS["gemma2"], head=TiedHead())
    batch = _whole_rows()
    plain = np.asarray(_compiled(config)(random_params(config), batch), np.float64)
    assert abs(plain).max() > 6  # so that the cap of 30 is seen
    assert_close(_forward("gemma2")(batch), 30 * np.tanh(plain / 30), SAME_LOGITS)


def _model(config: DecoderConfig, params):
    graph, _, _ = abstract_model(config)
    return nnx.merge(graph, params)


def _normed(x, params):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * params["embedding_norm"]["scale"]


EMBEDDINGS = {
    "rows": (TokenEmbedding(), lambda x, positions, params: x),
    "times the root of the width": (ScaledEmbedding(), lambda x, positions, params: x * 32**0.5),
    "scaled": (ScaledEmbedding(scale=3.0), lambda x, positions, params: x * 3.0),
    "positions": (LearnedPositions(), lambda x, positions, params: x + positions),
    "norm of the sum": (
        LearnedPositions(normalised=True),
        lambda x, positions, params: _normed(x + positions, params),
    ),
    "normalised": (NormalisedEmbedding(), lambda x, positions, params: _normed(x, params)),
}


@pytest.mark.parametrize("embedding, formula", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_an_embedding_is_its_formula(embedding, formula):
    batch = training_batch(2, 16, vocab_size=64)
    context = TokenContext(batch.positions, batch.segment_ids, batch.positions, batch.segment_ids)
    config = variant(embedding=embedding)
    params = random_params(config)
    positions = params["positions"]["table"][batch.positions] if "positions" in params else None
    desired = formula(params["embedding"]["table"][batch.tokens], positions, params)
    assert_close(_model(config, params).embed(batch.tokens, context), desired, CLOSED_FORM_LAYER)


def test_a_tied_head_multiplies_by_the_embedding_table():
    config = variant(head=TiedHead())
    params = random_params(config)
    x = np.random.default_rng(0).standard_normal((1, 3, 32)).astype(np.float32)
    normed = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * params["final_norm"]["scale"]
    assert_close(_model(config, params).head.logits(x), normed @ params["embedding"]["table"].T, CLOSED_FORM_LAYER)
    assert "output" not in params and "output" in random_params(DECODER)


def _loss(config: DecoderConfig):
    graph, _, _ = abstract_model(config)
    batch = training_batch(2, 16, vocab_size=64)
    return lambda params: NextToken()(nnx.merge(graph, params), batch, None).minimised["nll"]


def test_scan_on_and_off_have_the_same_parameters_loss_and_gradient():
    on, off = variant(scan=True), variant(scan=False)
    (_, shapes_on, axes_on), (_, shapes_off, axes_off) = abstract_model(on), abstract_model(off)
    assert shapes_on == shapes_off and axes_on == axes_off
    params = random_params(on)
    results = [jax.jit(jax.value_and_grad(_loss(config)))(params) for config in (on, off)]
    assert_close(*results, SAME_GRADIENT)


def _program_lines(*, scan: bool, repeats: int) -> int:
    config = variant(scan=scan, repeats=repeats)
    return len(jax.jit(jax.grad(_loss(config))).lower(random_params(config)).as_text().splitlines())


def test_under_scan_the_program_does_not_grow_with_depth():
    assert _program_lines(scan=True, repeats=8) == _program_lines(scan=True, repeats=2)
    assert _program_lines(scan=False, repeats=4) > 1.5 * _program_lines(scan=False, repeats=2)


@functools.cache
def _program(devices: int, **changes) -> str:
    config = variant(**changes)
    with jax.set_mesh(MeshConfig(data=devices).build(jax.devices()[:devices])):
        return jax.jit(_loss(config)).lower(random_params(config)).as_text()


def test_by_default_a_few_layers_on_one_cpu_are_unrolled_and_all_others_run_in_a_scan():
    deep = MOST_UNROLLED + 1
    assert _program(1) == _program(1, scan=False) != _program(1, scan=True)
    assert _program(2) == _program(2, scan=True) != _program(2, scan=False)
    assert _program(1, repeats=deep) == _program(1, repeats=deep, scan=True)
    assert _program(1, remat=FullRemat()) == _program(1, remat=FullRemat(), scan=True)


def test_dropout_of_a_row_depends_on_its_own_key_alone():
    config = variant(dropout=0.3)
    batch = training_batch(4, 16, vocab_size=64)
    keys = step_keys(jax.random.key(1), 4)
    forward = functools.partial(_compiled(config), random_params(config))
    order = np.array([2, 0, 3, 1])
    reordered = keys._replace(rows=keys.rows[order])
    shuffled = forward(jax.tree.map(lambda leaf: leaf[order], batch), reordered)
    assert_close(shuffled, forward(batch, keys)[order], SAME_LOGITS)
    assert abs(forward(batch, keys) - forward(batch, reordered)).max() > 0.1


def test_a_sequence_longer_than_the_model_is_refused_with_both_lengths():
    batch = training_batch(1, 40, vocab_size=64)
    with pytest.raises(ValueError, match=r"40 tokens.*max_length is 32"):
        jax.eval_shape(_loss_of_batch(batch), random_params(DECODER))


def _loss_of_batch(batch: Batch):
    graph, _, _ = abstract_model(DECODER)
    return lambda params: nnx.merge(graph, params)(batch)


@pytest.mark.parametrize(
    ("field", "value"),
    [("compute_dtype", "float64"), ("dropout", 1.0), ("dropout", -0.1), ("pattern", ()), ("repeats", 0)],
)
def test_impossible_decoders_are_refused_by_field_and_value(field, value):
    with pytest.raises(ValueError, match=f"{field}=") as error:
        variant(**{field: value})
    assert repr(value) in str(error.value)
