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
from jaxtrain.nn.mixers import attention
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.rope import RopeConfig, rotate

D, L = 12, 23
PLAIN = AttentionConfig(heads=4, kv_heads=4, head_dim=6, rope=None)
VARIANTS = {
    "plain": PLAIN,
    "grouped": dataclasses.replace(PLAIN, kv_heads=2),
    "multi-query": dataclasses.replace(PLAIN, kv_heads=1),
    "rotary": dataclasses.replace(PLAIN, rope=RopeConfig(theta=100.0)),
    "window": dataclasses.replace(PLAIN, window=5),
    "soft cap": dataclasses.replace(PLAIN, softcap=0.3),
    "scale": dataclasses.replace(PLAIN, scale=1.7),
    "bias": dataclasses.replace(PLAIN, bias=True),
    "bias of all but the output": dataclasses.replace(PLAIN, bias=True, output_bias=False),
    "bias of the output alone": dataclasses.replace(PLAIN, output_bias=True),
    "sinks": dataclasses.replace(PLAIN, kv_heads=2, sinks=True),
    "sinks in a window": dataclasses.replace(PLAIN, sinks=True, window=5, softcap=2.0),
    "qk-norm over all heads": dataclasses.replace(
        PLAIN, kv_heads=2, qk_norm=RMSNormConfig(epsilon=0.1), joint_qk_norm=True
    ),
    "qk-norm": dataclasses.replace(PLAIN, qk_norm=RMSNormConfig(epsilon=0.1)),
    "everything": AttentionConfig(
        heads=4, kv_heads=2, head_dim=6, qk_norm=RMSNormConfig(), bias=True, window=7, softcap=2.0, scale=0.9
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
    if config.bias:
        q, k, v = q + w["query"]["bias"], k + w["key"]["bias"], v + w["value"]["bias"]
    if config.qk_norm:
        q, k = (
            _rms(x.reshape(2, L, -1) if config.joint_qk_norm else x, config.qk_norm, w[name]["scale"]).reshape(x.shape)
            for x, name in ((q, "query_norm"), (k, "key_norm"))
        )
    batch = _batch()
    if config.rope:  # tested by itself
        q, k = (
            np.asarray(rotate(t.astype(np.float32), batch.positions, config.rope, length=L), np.float64) for t in (q, k)
        )
    y = np.zeros_like(q)
    for b, i, h in np.ndindex(y.shape[:3]):
        j = h // (config.heads // config.kv_heads)
        first = 0 if config.window is None else max(0, i - config.window + 1)
        seen = [s for s in range(first, i + 1) if batch.segment_ids[b, s] == batch.segment_ids[b, i]]
        scores = [q[b, i, h] @ k[b, s, j] * (config.scale or 1 / math.sqrt(config.head_dim)) for s in seen]
        if config.softcap:
            scores = [config.softcap * math.tanh(score / config.softcap) for score in scores]
        total = sum(math.exp(score) for score in scores) + (math.exp(w["sinks"][h]) if config.sinks else 0)
        y[b, i, h] = sum(math.exp(score) / total * v[b, s, j] for score, s in zip(scores, seen, strict=True))
    out = np.einsum("blhk,hkd->bld", y, w["output"]["kernel"])
    return out + w["output"]["bias"] if config.has_output_bias else out


@pytest.mark.parametrize("name", VARIANTS)
def test_attention_is_its_formula(name):
    layer, x = _layer(VARIANTS[name]), _x()
    y, state, *_ = nnx.jit(lambda layer, x: layer(x, _context()))(layer, x)
    assert state is None
    documents = _batch().segment_ids > 0  # what padding sees is nobody's business
    assert_close(y[documents], _by_loops(VARIANTS[name], layer, x)[documents], CLOSED_FORM_LAYER)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("kv_heads", 3, "must divide heads=4"), ("kv_heads", 0, "at least 1"), ("window", 0, "must be from 1 to")],
)
def test_impossible_heads_and_windows_are_refused(field, value, said):
    with pytest.raises(ValueError, match=f"{field}={value}: .*{said}"):
        dataclasses.replace(PLAIN, **{field: value})


def test_rotary_positions_need_an_even_head():
    with pytest.raises(ValueError, match="head_dim=5: .*even"):
        AttentionConfig(heads=2, kv_heads=2, head_dim=5)


def test_part_of_a_head_needs_an_even_number_of_elements():
    with refused(ValueError, "rope.fraction=0.4", "head_dim=8", "rotates 3 elements"):
        AttentionConfig(heads=2, kv_heads=2, head_dim=8, rope=RopeConfig(fraction=0.4))


def test_a_norm_over_all_heads_says_which_norm():
    with refused(ValueError, "joint_qk_norm=True", "qk_norm"):
        dataclasses.replace(PLAIN, joint_qk_norm=True)


def test_sinks_have_the_gradient_of_the_formula():
    """The reference is the formula, which JAX differentiates; the default has a backward pass of its own."""
    x, documents = _x(), _batch().segment_ids > 0

    def gradient(implementation):
        layer = _layer(dataclasses.replace(PLAIN, sinks=True, window=5, implementation=implementation))
        graph, params = nnx.split(layer, nnx.Param)

        def total(params):
            return jnp.sum(nnx.merge(graph, params)(x, _context()).y ** 2 * documents[:, :, None])

        return jax.jit(jax.grad(total))(params).sinks[...]

    assert_close(gradient(None), gradient("reference"), SAME_GRADIENT)


@pytest.mark.parametrize(("window", "length", "mean"), [(None, 6, 3.5), (1, 6, 1.0), (3, 6, 2.5), (9, 6, 3.5)])
def test_mean_keys_counts_what_causality_and_window_leave(window, length, mean):
    config = dataclasses.replace(PLAIN, window=window)
    counted = np.mean([min(i + 1, window or length) for i in range(length)])
    assert config.mean_keys(length) == mean == counted
