"""Mixture of Depths: the best tokens of a row pass, and a predictor that sees no later token replaces the choice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_flops import matmul_flops
from jaxtrain_kernels.flash_attention import xla
from messages import refused
from tiny import packed_batch, random_model, training_batch
from tolerances import CLOSED_FORM_LAYER, EXACT, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model, context_of
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.depth import MixtureOfDepths
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.joins import PostNorm
from jaxtrain.nn.layer import Keys
from jaxtrain.nn.masks import Bidirectional, SlidingWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.decay import StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.moe.observed import ROUTING
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.param import merge
from jaxtrain.nn.positions import ALiBi

D, L, ROWS = 8, 12, 3
ATTENTION = AttentionConfig(heads=2, kv_heads=2, head_dim=4)
DENSE = BlockConfig(mixer=ATTENTION, mlp=MLPConfig(hidden=12))
HALF = MixtureOfDepths(capacity=0.5, predictor=6)
BATCH = training_batch(ROWS, L, vocab_size=20)
KEYS = Keys(jax.random.split(jax.random.key(0), ROWS), jax.random.key(1))
X = np.random.default_rng(0).standard_normal((ROWS, L, D)).astype(np.float32)


def _routed(**changes) -> BlockConfig:
    return dataclasses.replace(DENSE, depth=dataclasses.replace(HALF, **changes))


def _built(config: BlockConfig):
    return config.build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _run(config: BlockConfig, x, batch, keys, score_of_one=False):
    """Return what a block makes of rows; its router is the first element, if asked for."""
    block = _built(config)
    if score_of_one:
        block.router[...] = jnp.zeros((D, 1)).at[0].set(1.0)
    return block(x, context_of(batch, keys))


MODEL = DecoderConfig(vocab_size=20, d_model=D, repeats=2, pattern=(DENSE, _routed()), max_length=16)
GRAPH = abstract_model(MODEL).graph
STATE = random_model(MODEL, seed=1)


@jax.jit
def logits(tokens, keys):
    batch = packed_batch([[L]], L, vocab_size=20)._replace(tokens=tokens)
    return merge(GRAPH, STATE)(batch, keys)


def test_all_tokens_with_a_score_of_one_are_the_block_without_a_router():
    x = X.copy()
    x[..., 0] = 1.0
    dense = _run(DENSE, x, BATCH, None).y
    assert_close(_run(_routed(capacity=1.0), x, BATCH, KEYS, True).y, dense, CLOSED_FORM_LAYER)


def test_the_best_tokens_pass_at_their_own_positions_and_the_others_are_untouched():
    """Against the whole block in which the others are hidden. A score weighs what the block adds."""
    y, score = _run(_routed(), X, BATCH, KEYS).y, X @ np.asarray(_built(_routed()).router[...])[:, 0]
    real = BATCH.segment_ids > 0
    passing = np.zeros((ROWS, L), bool)
    for row in range(ROWS):
        passing[row, np.argsort(np.where(real[row], -score[row], np.inf), stable=True)[: L // 2]] = True
    hidden = BATCH._replace(segment_ids=BATCH.segment_ids * passing)
    added = (_run(DENSE, X, hidden, None).y - X) * score[..., None]
    assert_close(y[passing & real], (X + added)[passing & real], CLOSED_FORM_LAYER)
    assert_close(y[~passing], X[~passing], EXACT)


def test_the_predictor_learns_which_tokens_pass_and_nothing_else_learns_from_its_loss():
    block = _built(_routed(coefficient=0.5))
    graph, params = nnx.split(block)

    def loss(params, x):
        sums = nnx.merge(graph, params)(x, context_of(BATCH, KEYS)).sums
        return sums.terms["membership"], sums.counts["depth"]

    (value, counts), gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, X)
    up, down = np.asarray(block.predictor_up[...]), np.asarray(block.predictor_down[...])
    logit = (np.maximum(X @ up, 0) @ down)[..., 0]
    score, real = X @ np.asarray(block.router[...])[:, 0], BATCH.segment_ids > 0
    rank = np.argsort(np.argsort(np.where(real, -score, np.inf), axis=1), axis=1)
    nll = np.log1p(np.exp(np.where(rank < L // 2, -logit, logit)))
    assert float(value) == pytest.approx(0.5 * nll[real].sum(), rel=1e-5)
    wrong = ((logit > 0) != (rank < L // 2))[real].mean()
    assert float(block.report({"depth": counts})["mispredicted"]) == pytest.approx(wrong)
    of_params, of_x = gradient
    learns = {path[0] for path, leaf in nnx.to_flat_state(of_params) if np.any(leaf[...])}
    assert learns == {"predictor_up", "predictor_down", "predictor_bias"}
    assert_close(of_x, np.zeros_like(X), EXACT)


def test_the_choice_looks_ahead_and_the_predictor_does_not():
    """And one compiled program serves every choice."""
    tokens = np.random.default_rng(2).integers(0, 20, (1, L)).astype(np.int32)
    keys = Keys(jax.random.split(jax.random.key(0), 1), jax.random.key(1))
    changed = {"ahead": 0.0, "causal": 0.0}
    before = {name: logits(tokens, own) for name, own in (("ahead", keys), ("causal", None))}
    for last in range(20):
        other = tokens.copy()
        other[0, -1] = last
        for name, own in (("ahead", keys), ("causal", None)):
            change = np.abs(logits(other, own) - before[name])[:, :-1].max()
            changed[name] = max(changed[name], float(change))
    assert changed["ahead"] > 0.01 and changed["causal"] == 0.0
    assert logits._cache_size() == 2  # in training and in evaluation


def test_cached_generation_is_the_uncached_forward():
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    drawn = generate(GRAPH, STATE, prompts, tokens=6, sampling=Sampling(temperature=0.0), key=jax.random.key(0))
    passed = set()
    for prompt, continued in zip(prompts, drawn, strict=True):
        tokens = np.zeros((1, L), np.int32)
        tokens[0, : len(prompt) + 6] = [*prompt, *continued]
        likeliest = np.argmax(logits(tokens, None)[0], axis=-1)
        assert continued == likeliest[len(prompt) - 1 : len(prompt) + 5].tolist()
        passed |= set(continued)
    assert len(passed) > 1


def test_operations_are_those_of_the_closed_form(monkeypatch):
    """An eighth of 512 tokens in every second block: 0.5488 of the dense model's operations."""
    for platform in ("CPU", "ACCELERATOR"):  # one block, masked scores and all
        monkeypatch.setattr(xla, platform, xla.Sizes(rows=1, queries=512, written_out=1))
    width, length = 256, 512
    dense = BlockConfig(mixer=AttentionConfig(heads=4, kv_heads=4, head_dim=64), mlp=MLPConfig(hidden=4 * width))
    routed = dataclasses.replace(dense, depth=MixtureOfDepths(capacity=0.125, predictor=8))
    batch = packed_batch([[length]], length, vocab_size=4)
    keys = Keys(jax.random.split(jax.random.key(0), 1), jax.random.key(1))

    def counted(*pattern: BlockConfig) -> int:
        config = DecoderConfig(vocab_size=4, d_model=width, repeats=1, pattern=pattern, max_length=length)
        graph, shapes, _ = abstract_model(config)
        return matmul_flops(lambda state: merge(graph, state).hidden(batch, keys).y, shapes)

    def closed(tokens: int) -> int:
        return tokens * (24 * width**2 + 4 * tokens * width)

    router = 2 * length * (width + 8 * width + 8)
    assert counted(dense, dense) == 2 * closed(length)
    found = counted(dense, routed) - router
    assert found == closed(length) + closed(length // 8)
    assert found / (2 * closed(length)) == pytest.approx(0.5488, abs=1e-4)


def test_the_operations_of_a_token_are_those_that_are_multiplied(monkeypatch):
    for platform in ("CPU", "ACCELERATOR"):  # blocks of one query, so that no masked score is computed
        monkeypatch.setattr(xla, platform, xla.Sizes(rows=1, queries=1, keys=16, written_out=16))
    batch = packed_batch([[16]], 16, vocab_size=20)
    keys = Keys(jax.random.split(jax.random.key(0), 1), jax.random.key(1))
    counted = matmul_flops(lambda state: merge(GRAPH, state)(batch, keys), STATE)
    assert 3 * counted == MODEL.flops_per_token(16) * 16


def test_a_mixture_counts_the_tokens_that_pass():
    mixture = MixtureConfig(experts=4, top_k=2, expert=MLPConfig(hidden=4))
    block = _built(dataclasses.replace(_routed(), mlp=mixture))
    counted = jax.jit(lambda keys: block(X, context_of(BATCH, keys, [ROUTING])).sums.counts["mlp"]["load"])
    hidden = np.maximum(X @ np.asarray(block.predictor_up[...]), 0)
    predicted = ((hidden @ np.asarray(block.predictor_down[...]))[..., 0] > 0) & (BATCH.segment_ids > 0)
    taken = np.minimum((BATCH.segment_ids > 0).sum(axis=1), L // 2)
    assert counted(None).sum() == 2 * predicted.sum() != counted(KEYS).sum() == 2 * taken.sum()


def test_a_model_that_sees_ahead_needs_no_predictor():
    depth = MixtureOfDepths(capacity=0.5, predictor=None)
    ahead = dataclasses.replace(ATTENTION, mask=Bidirectional())
    evaluated, trained = (
        _run(dataclasses.replace(DENSE, mixer=ahead, depth=depth), X, BATCH, keys) for keys in (None, KEYS)
    )
    assert_close(evaluated.y, trained.y, EXACT)
    assert not evaluated.sums.terms and not evaluated.sums.counts


def test_what_would_give_wrong_numbers_is_refused():
    with refused(ValueError, "predictor=None", "generate"):
        _routed(predictor=None)
    with refused(ValueError, "capacity=0.0"):
        _routed(capacity=0.0)
    with refused(ValueError, "mask=SlidingWindow(window=3)", "depth"):
        dataclasses.replace(_routed(), mixer=dataclasses.replace(ATTENTION, mask=SlidingWindow(window=3)))
    with refused(ValueError, "positions=ALiBi()", "depth"):
        dataclasses.replace(_routed(), mixer=dataclasses.replace(ATTENTION, positions=ALiBi()))
    with refused(ValueError, "mixer=DeltaRuleConfig", "depth"):
        recurrent = DeltaRuleConfig(heads=2, kv_heads=2, head_dim=4, value_dim=4, decay=StepDecay())
        dataclasses.replace(_routed(), mixer=recurrent)
    with refused(ValueError, "join=PostNorm()", "PreNorm"):
        dataclasses.replace(_routed(), join=PostNorm())
    with refused(ValueError, "depth=MixtureOfDepths", "taps"):
        _built(_routed())(X, context_of(BATCH, KEYS, ["mlp_output"]))
