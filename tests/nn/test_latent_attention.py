"""Latent attention is what its paper's equations say, keeps documents apart, and decodes with its small cache."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import training_batch
from tolerances import CLOSED_FORM_LAYER, EXACT, SAME_SUMS, assert_close

from jaxtrain.models.counts import counts
from jaxtrain.models.decoder import context_of
from jaxtrain.nn.mixers.latent_attention import LatentAttentionConfig
from jaxtrain.nn.param import axes_of, split
from jaxtrain.nn.positions import ALiBi

WIDTH, ROWS, LENGTH = 16, 2, 12
CONFIG = LatentAttentionConfig(heads=2, latent=6, head_dim=4, rotated_dim=4, value_dim=3, query_latent=5)
BATCH = training_batch(ROWS, LENGTH, vocab_size=64)
X = np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)


def _layer(config: LatentAttentionConfig):
    layer, random = config.build(WIDTH, rngs=nnx.Rngs(0)), np.random.default_rng(1)
    for norm in (layer.latent_norm, *((layer.query_norm,) if config.query_latent else ())):
        norm.scale[...] = random.uniform(0.5, 1.5, norm.scale.shape).astype(np.float32)
    return layer


def _by_equations(config: LatentAttentionConfig, layer) -> np.ndarray:
    """Equations 9 to 19 and 37 to 47 of the paper, token by token in float64."""

    def matrix(name: str) -> np.ndarray:
        return np.asarray(getattr(layer, name).dense(), np.float64)

    def normed(norm, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + 1e-6) * np.asarray(norm.scale[...], np.float64)

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        pairs = x.reshape(*x.shape[:-1], -1, 2) @ np.array([1, 1j])
        angles = position * 10_000.0 ** -(np.arange(pairs.shape[-1]) * 2 / x.shape[-1])
        pairs = pairs * np.exp(1j * angles)
        return np.stack((pairs.real, pairs.imag), -1).reshape(x.shape)

    output = np.zeros(X.shape)
    for row in range(ROWS):
        queries, keys, values = [], [], []
        for token in range(LENGTH):
            x, position = X[row, token].astype(np.float64), int(BATCH.positions[row, token])
            q = normed(layer.query_norm, x @ matrix("query_down")) if config.query_latent else x
            q = np.einsum("c,chk->hk", q, matrix("query"))
            queries.append(np.concatenate((q[:, :4], turned(q[:, 4:], position)), -1))
            latent = normed(layer.latent_norm, x @ matrix("down"))
            shared = np.tile(turned(x @ matrix("rotated_key"), position), (2, 1))
            keys.append(np.concatenate((np.einsum("c,chk->hk", latent, matrix("key")), shared), -1))
            values.append(np.einsum("c,chk->hk", latent, matrix("value")))
        for token in range(LENGTH):
            seen = [s for s in range(token + 1) if BATCH.segment_ids[row, s] == BATCH.segment_ids[row, token]]
            scores = np.einsum("hk,shk->hs", queries[token], np.stack([keys[s] for s in seen])) * 8**-0.5
            weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
            mixed = np.einsum("hs,shv->hv", weights, np.stack([values[s] for s in seen]))
            output[row, token] = np.einsum("hv,hvd->d", mixed, matrix("output"))
    return output


@pytest.mark.parametrize("query_latent", [None, 5])
def test_it_is_the_equations_of_the_paper(query_latent):
    config = dataclasses.replace(CONFIG, query_latent=query_latent)
    layer = _layer(config)
    found, real = layer(X, context_of(BATCH, None)).y, BATCH.segment_ids[..., None] > 0
    assert_close(found * real, (_by_equations(config, layer) * real).astype(np.float32), CLOSED_FORM_LAYER)


def test_tokens_read_with_a_cache_are_those_read_at_once():
    layer, ones = _layer(CONFIG), np.ones((ROWS, LENGTH), np.int32)
    context = context_of(BATCH._replace(segment_ids=ones, positions=np.cumsum(ones, 1) - 1), None)
    state, read = layer.initial_state(ROWS, LENGTH, jnp.float32), []
    assert [part.shape for part in state] == [(ROWS, LENGTH, 6), (ROWS, LENGTH, 1, 4)]
    for first, last in ((0, 5), (5, 6), (6, LENGTH)):
        part = {name: getattr(context, name)[:, first:last] for name in ("positions", "segment_ids")}
        told = context._replace(**part, cache_index=jnp.int32(first), key_segment_ids=ones * (np.arange(LENGTH) < last))
        out = layer(X[:, first:last], told, state)
        state = out.state
        read.append(out.y)
    assert_close(jnp.concatenate(read, axis=1), layer(X, context).y, SAME_SUMS)


def test_one_document_does_not_reach_another():
    layer, context, changed = _layer(CONFIG), context_of(BATCH, None), np.array(X)
    document = BATCH.segment_ids == 1
    changed[document] += 1.0
    others = (BATCH.segment_ids > 1)[..., None]
    assert others.any()
    assert_close(layer(changed, context).y * others, layer(X, context).y * others, EXACT)


def test_attention_of_deepseek_v3_has_187_million_parameters():
    """Table of sizes in arXiv:2412.19437, section 4.2: 7168 wide, 128 heads, latents of 1536 and 512."""
    config = LatentAttentionConfig(
        heads=128, latent=512, head_dim=128, rotated_dim=64, value_dim=128, query_latent=1536
    )
    layer = nnx.eval_shape(lambda: config.build(7168, rngs=nnx.Rngs(0)))
    assert counts(split(layer)[1], axes_of(layer)).parameters == 187_105_280 + 1536 + 512


@pytest.mark.parametrize(
    ("changes", "facts"),
    [({"rotated_dim": 3}, ("3",)), ({"positions": ALiBi()}, ("ALiBi()",)), ({"query_latent": 0}, ("query_latent=0",))],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(changes, facts):
    with refused(ValueError, *facts):
        dataclasses.replace(CONFIG, **changes)
