"""An encoder: it sees both ways, each document alone, distances by ALiBi; and a vocabulary that is padded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import packed_batch, random_params, variant
from tolerances import CLOSED_FORM_LAYER, EXACT, SAME_GRADIENT, SAME_LOGITS, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models import decoder
from jaxtrain.models.decoder import DecoderConfig, abstract_model, context_of
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.masks import Bidirectional, Causal
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.param import merge
from jaxtrain.nn.positions import ALiBi
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.train.gradients import Loss

ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=8, positions=ALiBi(), mask=Bidirectional())


def _encoder(mixer: AttentionConfig = ATTENTION, **changes) -> DecoderConfig:
    return variant(pattern=(dataclasses.replace(variant().pattern[0], mixer=mixer),), **changes)


ENCODER = _encoder()
PARAMS = random_params(ENCODER)


def _logits(batch: Batch, config: DecoderConfig = ENCODER, params=PARAMS) -> jax.Array:
    graph = abstract_model(config).graph
    return jax.jit(lambda params, batch: merge(graph, ModelState(params))(batch))(params, batch)


def test_packed_documents_are_what_they_are_padded_and_masked():
    packed = packed_batch([[12, 7, 9]], 32, vocab_size=64)
    rows = [np.stack([packed.tokens, packed.targets, packed.segment_ids, packed.positions])[:, 0]]
    for number, (start, length) in enumerate(((0, 12), (12, 7), (19, 9)), 1):
        row = np.zeros((4, 32), np.int32)
        row[0, :length] = packed.tokens[0, start : start + length]
        row[2, :length], row[3, :length] = number, np.arange(length)
        rows.append(row)
    tokens, targets, segments, positions = np.stack(rows, axis=1)
    together, *alone = np.asarray(_logits(Batch(tokens, targets, np.ones((4, 32), np.float32), segments, positions)))
    desired = np.concatenate([alone[0][:12], alone[1][:7], alone[2][:9]])
    assert_close(together[:28], desired, SAME_LOGITS)


def test_every_token_of_a_document_reaches_every_other():
    batch = packed_batch([[12, 7]], 19, vocab_size=64)
    seen = jax.jit(jax.jacobian(lambda shown: _seen(batch, shown)))(jnp.zeros((19, 32))).sum(-1) != 0
    documents = batch.segment_ids[0][:, None] == batch.segment_ids[0][None]
    np.testing.assert_array_equal(seen, documents)


def _seen(batch: Batch, shown: jax.Array) -> jax.Array:
    """Return a number for each place; `shown` is added to the embeddings."""
    model = merge(abstract_model(_encoder()).graph, ModelState(PARAMS))
    context = context_of(batch, None)
    x = model.embed(batch.tokens, context) + shown[None]
    return model.run_blocks(x, context, model.no_states()).y[0].sum(-1) ** 2


def test_alibi_is_the_bias_of_the_paper_for_heads_that_are_a_power_of_two_and_others():
    """Press et al. (2021), section 3: 8 heads begin at 1/2 and 16 at 2^-0.5; others interleave the next power's."""
    of_eight = ALiBi().slopes(8)
    np.testing.assert_allclose(of_eight, [2.0**-i for i in range(1, 9)])
    of_sixteen = ALiBi().slopes(16)
    np.testing.assert_allclose(of_sixteen, [2.0 ** (-i / 2) for i in range(1, 17)])
    of_twelve = ALiBi().slopes(12)
    np.testing.assert_allclose(of_twelve, [*of_eight, *[2.0 ** (-i / 2) for i in (1, 3, 5, 7)]])


def test_attention_with_alibi_is_the_softmax_of_scores_less_slope_times_distance():
    layer = ATTENTION.build(16, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 9, 16)).astype(np.float32)
    batch = packed_batch([[9]], 9, vocab_size=64)
    q, k, v = (np.asarray(own(x), np.float64)[0] for own in (layer.query, layer.key, layer.value))
    k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
    distance = np.abs(np.arange(9)[:, None] - np.arange(9)[None])
    scores = np.einsum("lhk,shk->hls", q, k) / 8**0.5 - np.array(ALiBi().slopes(4))[:, None, None] * distance
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    y = np.einsum("hls,shk->lhk", weights, v)
    desired = np.einsum("lhk,hkd->ld", y, np.asarray(layer.output.dense(), np.float64))
    assert_close(layer(x, context_of(batch, None)).y[0], desired.astype(np.float32), CLOSED_FORM_LAYER)


def test_a_causal_decoder_with_alibi_decodes_with_its_cache_as_it_reads_at_once():
    config = _encoder(dataclasses.replace(ATTENTION, mask=Causal()))
    model, prompt = ModelState(PARAMS), [3, 9, 4, 11, 7]
    options = {"sampling": Sampling(temperature=0.0), "key": jax.random.key(0), "stop_token": None}
    [new] = generate(abstract_model(config).graph, model, [prompt], tokens=6, **options)
    text = np.array([prompt + new], np.int32)
    ones = np.ones(text.shape, np.int32)
    batch = Batch(text, text, ones.astype(np.float32), ones, ones.cumsum(1, dtype=np.int32) - 1)
    greedy = np.asarray(_logits(batch, config)).argmax(-1)[0]
    assert new == greedy[len(prompt) - 1 : -1].tolist()


def test_nothing_is_generated_by_attention_that_sees_ahead():
    options = {"sampling": Sampling(temperature=0.0), "key": jax.random.key(0), "stop_token": None}
    with refused(ValueError, "mask=Bidirectional()"):
        generate(abstract_model(_encoder()).graph, ModelState(PARAMS), [[3]], tokens=2, **options)


def test_alibi_with_a_kernel_by_name_is_refused():
    with refused(ValueError, "positions=ALiBi()", "implementation='tpu'"):
        dataclasses.replace(ATTENTION, implementation="tpu")


@pytest.mark.parametrize("tile", [None, 16], ids=["at once", "tiles"])
def test_rows_that_pad_the_vocabulary_change_neither_loss_nor_gradient(tile, monkeypatch):
    if tile:
        monkeypatch.setattr(decoder, "Head", functools.partial(Head, tile=tile))
    exact, padded = (_encoder(vocab_size=50, vocab_multiple=multiple) for multiple in (1, 64))
    whole = random_params(padded)
    cut = {**whole, "embedding": {"table": whole["embedding"]["table"][:50]}, "output": {}}
    cut["output"] = {"kernel": whole["output"]["kernel"][:50]}
    batch = packed_batch([[20], [9, 11]], 20, vocab_size=50)

    def value_and_gradient(config, params):
        loss = Loss.of_batch(abstract_model(config).graph, NextToken(z_loss=0.1), ModelState(params), batch)
        return jax.jit(lambda params: jax.value_and_grad(loss, has_aux=True)(params, batch, None))(params)

    (value, _), gradient = value_and_gradient(padded, whole)
    (desired, _), desired_gradient = value_and_gradient(exact, cut)
    assert float(value) == pytest.approx(float(desired), rel=1e-6)
    for name, leaf in (("embedding", "table"), ("output", "kernel")):
        assert_close(gradient[name][leaf][:50], desired_gradient[name][leaf], SAME_GRADIENT)
        assert_close(gradient[name][leaf][50:], np.zeros((14, 32), np.float32), EXACT)
    assert np.asarray(_logits(batch, padded, whole))[..., 50:].max() == -1e30


def test_a_padded_vocabulary_is_split_over_devices_that_do_not_divide_its_words():
    config = _encoder(vocab_size=50, vocab_multiple=8)
    batch, params = packed_batch([[20], [9, 11]] * 4, 20, vocab_size=50), random_params(config)
    loss = Loss.of_batch(abstract_model(config).graph, NextToken(), ModelState(params), batch)
    alone = jax.jit(lambda params: loss(params, batch, None)[0])(params)
    with jax.set_mesh(MeshConfig(fsdp=2, tensor=4).build()):
        split = jax.jit(lambda params: loss(params, batch, None)[0])(params)
    assert_close(split, np.asarray(alone), SAME_SUMS)
