"""Attention against a loop over heads, queries and keys in float64."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import packed_batch
from tolerances import CLOSED_FORM_LAYER, SAME_GRADIENT, assert_close

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.masks import SlidingWindow
from jaxtrain.nn.mixers import attention
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions import NoPositions, PartialRotary, Rotary
from jaxtrain.nn.qk_norms import AllHeads, PerHead

D, L = 12, 23
PLAIN = AttentionConfig(heads=4, kv_heads=4, head_dim=6, positions=NoPositions())
WINDOW, SINKS = SlidingWindow(window=5), Scores(sinks=True)
VARIANTS = {
    "plain": PLAIN,
    "grouped": dataclasses.replace(PLAIN, kv_heads=2),
    "multi-query": dataclasses.replace(PLAIN, kv_heads=1),
    "rotary": dataclasses.replace(PLAIN, positions=Rotary(theta=100.0)),
    "window": dataclasses.replace(PLAIN, mask=WINDOW),
    "soft cap": dataclasses.replace(PLAIN, scores=Scores(softcap=0.3)),
    "scale": dataclasses.replace(PLAIN, scores=Scores(scale=1.7)),
    "bias": dataclasses.replace(PLAIN, biases=LINEARS),
    "bias of all but the output": dataclasses.replace(PLAIN, biases=("query", "key", "value")),
    "bias of the output alone": dataclasses.replace(PLAIN, biases=("output",)),
    "sinks": dataclasses.replace(PLAIN, kv_heads=2, scores=SINKS),
    "sinks in a window": dataclasses.replace(PLAIN, mask=WINDOW, scores=Scores(sinks=True, softcap=2.0)),
    "qk-norm over all heads": dataclasses.replace(PLAIN, kv_heads=2, qk_norm=AllHeads(norm=RMSNormConfig(epsilon=0.1))),
    "qk-norm": dataclasses.replace(PLAIN, qk_norm=PerHead(norm=RMSNormConfig(epsilon=0.1))),
    "everything": AttentionConfig(
        heads=4,
        kv_heads=2,
        head_dim=6,
        mask=SlidingWindow(window=7),
        qk_norm=PerHead(),
        scores=Scores(softcap=2.0, scale=0.9),
        biases=LINEARS,
    ),
}


def _batch():
    return packed_batch([[L], [9, 11]], L, vocab_size=10)


def _context() -> TokenContext:
    batch = _batch()
    return TokenContext(batch.positions, batch.segment_ids, batch.positions, batch.segment_ids)


def _layer(config: AttentionConfig) -> attention.Attention:
    layer = config.build(D, rngs=nnx.Rngs(0))
    for number, param in enumerate(jax.tree.leaves(nnx.state(layer), is_leaf=lambda p: isinstance(p, nnx.Param))):
        noise = np.random.default_rng(number).standard_normal(param.shape).astype(np.float32)
        param[...] = param[...] + 0.3 * noise
    return layer


def _x() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((2, L, D)).astype(np.float32)


def _rms(x: np.ndarray, config: RMSNormConfig, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.epsilon) * scale


def _by_loops(config: AttentionConfig, layer: attention.Attention, x: np.ndarray) -> np.ndarray:
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    w = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    q, k, v = (np.einsum("bld,dhk->blhk", x, w[name]["kernel"]) for name in ("query", "key", "value"))
    q, k, v = (x + w[name].get("bias", 0.0) for x, name in ((q, "query"), (k, "key"), (v, "value")))
    if config.qk_norm:
        together = isinstance(config.qk_norm, AllHeads)
        q, k = (
            _rms(x.reshape(2, L, -1) if together else x, config.qk_norm.norm, w[name]["scale"]).reshape(x.shape)
            for x, name in ((q, "query_norm"), (k, "key_norm"))
        )
    batch = _batch()
    q, k = (  # tested by itself
        np.asarray(config.positions.rotate(jnp.asarray(t, jnp.float32), batch.positions, length=L), np.float64)
        for t in (q, k)
    )
    window, scores_of = config.mask.span.window or L, config.scores or Scores(scale=config.head_dim**-0.5)
    y = np.zeros_like(q)
    for b, i, h in np.ndindex(y.shape[:3]):
        j = h // (config.heads // config.kv_heads)
        seen = [s for s in range(max(0, i - window + 1), i + 1) if batch.segment_ids[b, s] == batch.segment_ids[b, i]]
        scores = [q[b, i, h] @ k[b, s, j] * (scores_of.scale or 1 / math.sqrt(config.head_dim)) for s in seen]
        if scores_of.softcap:
            scores = [scores_of.softcap * math.tanh(score / scores_of.softcap) for score in scores]
        total = sum(math.exp(score) for score in scores) + (math.exp(w["sinks"][h]) if scores_of.sinks else 0)
        y[b, i, h] = sum(math.exp(score) / total * v[b, s, j] for score, s in zip(scores, seen, strict=True))
    out = np.einsum("blhk,hkd->bld", y, w["output"]["kernel"])
    return out + w["output"].get("bias", 0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_is_its_formula(name):
    layer, x = _layer(VARIANTS[name]), _x()
    y, state, *_ = nnx.jit(lambda layer, x: layer(x, _context()))(layer, x)
    assert state is None
    documents = _batch().segment_ids > 0  # what padding sees is nobody's business
    assert_close(y[documents], _by_loops(VARIANTS[name], layer, x)[documents], CLOSED_FORM_LAYER)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("kv_heads", 3, "must divide heads=4"), ("kv_heads", 0, "at least 1")],
)
def test_impossible_heads_are_refused(field, value, said):
    with pytest.raises(ValueError, match=f"{field}={value}: .*{said}"):
        dataclasses.replace(PLAIN, **{field: value})


def test_rotary_positions_need_an_even_head():
    with pytest.raises(ValueError, match="head_dim=5: .*even"):
        AttentionConfig(heads=2, kv_heads=2, head_dim=5)


def test_part_of_a_head_needs_an_even_number_of_elements():
    with refused(ValueError, "fraction=0.4", "head_dim=8", "rotates 3 elements"):
        AttentionConfig(heads=2, kv_heads=2, head_dim=8, positions=PartialRotary(fraction=0.4))


@pytest.mark.parametrize("biases", [("query", "keys"), ("output", "query"), ("key", "key")])
def test_biases_name_linears_in_one_order(biases):
    with refused(ValueError, f"biases={biases}", "query", "output"):
        dataclasses.replace(PLAIN, biases=biases)


def test_scores_that_change_nothing_are_refused():
    with refused(ValueError, "scale=None", "leave scores out"):
        Scores()


def test_sinks_have_the_gradient_of_the_formula():
    """The reference is the formula, which JAX differentiates; the default has a backward pass of its own."""
    x, documents = _x(), _batch().segment_ids > 0

    def gradient(implementation):
        layer = _layer(dataclasses.replace(PLAIN, mask=WINDOW, scores=SINKS, implementation=implementation))
        graph, params = nnx.split(layer, nnx.Param)

        def total(params):
            return jnp.sum(nnx.merge(graph, params)(x, _context()).y ** 2 * documents[:, :, None])

        return jax.jit(jax.grad(total))(params).sinks[...]

    assert_close(gradient(None), gradient("reference"), SAME_GRADIENT)
