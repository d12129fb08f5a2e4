"""Mixture of Recursions: a block that tokens pass as often as a router says."""

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
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model, context_of
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.depth import Depth, ExpertChoiceRecursion, TokenChoiceRecursion
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.layer import Keys
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.latent_attention import LatentAttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.param import merge, split
from jaxtrain.nn.positions import NoPositions

D, L, ROWS, TIMES = 8, 12, 2, 3
DENSE = BlockConfig(mixer=AttentionConfig(heads=2, kv_heads=2, head_dim=4), mlp=MLPConfig(hidden=12))
BATCH = training_batch(ROWS, L, vocab_size=20)
REAL = BATCH.segment_ids > 0
KEYS = Keys(jax.random.split(jax.random.key(0), ROWS), jax.random.key(1))
X = np.random.default_rng(0).standard_normal((ROWS, L, D)).astype(np.float32)
X[..., 0] = 1.0
LINEAR = (1.0, 2 / 3, 1 / 3)
ALL = (1.0,) * TIMES


def _block(depth: Depth | None, config: BlockConfig = DENSE, seed: int = 0):
    """Return a block with random weights that leaves the first element of the stream as it is."""
    config = dataclasses.replace(config, depth=depth)
    graph, shapes = split(nnx.eval_shape(lambda: config.build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(seed)
    layers = ("mixer", "mixer_norm", "mlp", "mlp_norm")
    drawn = {
        name: jax.tree.map(lambda leaf: 0.4 * random.standard_normal(leaf.shape, np.float32), shapes.params[name])
        for name in (*layers, *sorted(shapes.params.keys() - layers))
    }
    drawn["mixer"]["output"]["kernel"][..., 0] = drawn["mlp"]["down"]["kernel"][..., 0] = 0.0
    return merge(graph, shapes._replace(params=drawn))


@functools.partial(jax.jit, static_argnums=0)
def _of_graph(graph, state, x, batch, keys):
    return merge(graph, state)(x, context_of(batch, keys))


def _run(block, x=X, batch=BATCH, keys=None):
    graph, state = split(block)
    return _of_graph(graph, state, x, batch, keys)


@pytest.mark.parametrize(
    ("depth", "logits"),
    [
        (ExpertChoiceRecursion(capacities=ALL), (50.0, 50.0, 50.0)),
        (TokenChoiceRecursion(times=TIMES), (0.0, 0.0, 50.0)),
    ],
    ids=["expert choice", "token choice"],
)
def test_all_passes_with_weights_of_one_are_the_block_again_and_again(depth, logits):
    block, once = _block(depth), _block(None)
    block.router[...] = np.float32(np.eye(D, 1) * np.array([logits]))  # of the first element, which is always 1
    desired = X
    for _ in range(TIMES):
        desired = _run(once, desired).y
    for keys in (KEYS, None):
        assert_close(_run(block, keys=keys).y[REAL], desired[REAL], CLOSED_FORM_LAYER)


def _hidden(passing: np.ndarray):
    return BATCH._replace(segment_ids=BATCH.segment_ids * passing)


def test_a_pass_takes_the_best_of_those_that_passed_before():
    """Against whole blocks in which the others are hidden; tokens that stop are untouched."""
    block, once = _block(ExpertChoiceRecursion(capacities=LINEAR)), _block(None)
    x, passing = X, np.ones((ROWS, L), bool)
    for number, tokens in enumerate((12, 8, 4)):
        logits = x @ np.asarray(block.router[...])[:, number]
        for row in range(ROWS):
            order = np.argsort(np.where(REAL[row] & passing[row], -logits[row], np.inf), stable=True)
            passing[row] &= np.isin(np.arange(L), order[:tokens])
        weight = passing / (1 + np.exp(-logits))
        x = x + np.asarray(_run(once, x, _hidden(passing)).y - x) * weight[..., None].astype(np.float32)
    assert 0 < passing.sum() <= 4 * ROWS
    out = _run(block, keys=KEYS)
    assert_close(out.y[REAL], x[REAL], CLOSED_FORM_LAYER)
    assert 0 <= float(block.report(out.sums.counts)["mispredicted"]) <= 1 and out.sums.terms["membership"] > 0


@pytest.mark.parametrize("shared_keys", [False, True])
def test_taken_tokens_are_computed_as_hidden_ones_are(shared_keys):
    """One row, of which training takes as many tokens as the signs of the logits do in evaluation."""
    batch = packed_batch([[7, 5]], L, vocab_size=20)
    block = _block(ExpertChoiceRecursion(capacities=ALL, shared_keys=shared_keys), seed=3)
    block.router[...] = 4 * block.router[...] + np.float32(50 * np.outer(np.arange(D) == 0, np.arange(TIMES) == 0))
    evaluated = _run(block, X[:1], batch)
    counts = _passed(block, batch)
    assert counts[0] == L > counts[1] >= counts[2] > 0
    depth = ExpertChoiceRecursion(capacities=tuple(n / L for n in counts), shared_keys=shared_keys)
    trained = _block(depth, seed=3)
    trained.router[...] = block.router[...]
    keys = Keys(KEYS.rows[:1], KEYS.step)
    assert_close(_run(trained, X[:1], batch, keys).y, evaluated.y, CLOSED_FORM_LAYER)


def _passed(block, batch) -> list[int]:
    """Return how many tokens of the one row pass each time in evaluation, as its decoding state has it."""
    graph, state = split(block)

    @jax.jit
    def passed(state):
        own = merge(graph, state)
        context = context_of(batch, None)._replace(cache_index=jnp.int32(0))
        return own(X[:1], context, own.initial_state(1, L, jnp.float32)).state.passed

    return [int(np.sum(part)) for part in passed(state)]


def test_later_passes_attend_to_the_keys_of_the_first():
    """Against the formula, without positions; every token that passes sees all before it in its document."""
    config = dataclasses.replace(DENSE, mixer=dataclasses.replace(DENSE.mixer, positions=NoPositions()))
    block = _block(TokenChoiceRecursion(times=2, shared_keys=True), config)
    once = _block(None, config)
    logits = X @ np.asarray(block.router[...])
    weight = np.max(jax.nn.softmax(logits), axis=-1, keepdims=True)
    again = (np.argmax(logits, axis=-1) == 1)[..., None]
    x = X + np.asarray(_run(once).y - X) * weight
    query = once.mixer.query(once.mixer_norm(x))
    key, value = (linear(once.mixer_norm(X)) for linear in (once.mixer.key, once.mixer.value))
    seen = (BATCH.segment_ids[:, :, None] == BATCH.segment_ids[:, None]) & np.tri(L, dtype=bool)[None]
    scores = np.where(seen[:, None], np.einsum("BLHK,BSHK->BHLS", query, key) / 2, -np.inf)
    y = x + once.mixer.output(jnp.einsum("BHLS,BSHK->BLHK", jax.nn.softmax(scores), value))
    y = y + once.mlp(once.mlp_norm(y), context_of(BATCH, None)).y
    desired = np.where(again, x + np.asarray(y - x) * weight, x)
    assert_close(_run(block).y[REAL], desired[REAL], CLOSED_FORM_LAYER)


def test_every_number_of_passes_is_balanced():
    block = _block(TokenChoiceRecursion(times=TIMES, coefficient=0.5))
    sums = _run(block, keys=KEYS).sums
    probabilities = jax.nn.softmax(X @ np.asarray(block.router[...]))
    desired = 0.0
    for row in range(ROWS):
        own = probabilities[row][REAL[row]]
        share = np.bincount(np.argmax(own, axis=-1), minlength=TIMES) / len(own)
        desired += 0.5 * TIMES * (share * own.sum(0)).sum()
    assert sums.terms.keys() == {"depth_balance"}  # that of experts is another number
    assert float(sums.terms["depth_balance"]) == pytest.approx(float(desired), rel=1e-5)
    load = np.asarray(sums.counts["depth"]["load"])
    assert load.sum() == REAL.sum()
    assert float(block.report(sums.counts)["fullest_depth"]) == pytest.approx(load.max() / load.mean())


def test_keys_in_memory_are_those_of_the_paper():
    """(N + 1) / 2N of the tokens times passes have keys with linear capacities, and 1 / N where they are shared."""
    apart, shared = (ExpertChoiceRecursion(capacities=LINEAR, shared_keys=own) for own in (False, True))
    assert sum(apart.tokens(L)) / (TIMES * L) == (TIMES + 1) / (2 * TIMES)
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(_block(depth).initial_state(1, L, jnp.float32).layers))
        for depth in (shared, apart)
    ]
    assert TIMES * sizes[0] == sizes[1]


@pytest.mark.parametrize("shared_keys", [False, True])
def test_operations_are_the_sum_of_the_capacities(shared_keys, monkeypatch):
    for platform in ("CPU", "ACCELERATOR"):  # one block, masked scores and all
        monkeypatch.setattr(xla, platform, xla.Sizes(rows=1, queries=L, written_out=1))
    block = _block(ExpertChoiceRecursion(capacities=LINEAR, shared_keys=shared_keys))
    graph, state = split(block)
    batch, keys = packed_batch([[L]], L, vocab_size=20), Keys(KEYS.rows[:1], KEYS.step)
    counted = matmul_flops(lambda state: merge(graph, state)(X[:1], context_of(batch, keys)).y, state)
    weights, router = 4 * D * D + 2 * D * 12, L + 12 + 8
    scores = sum(n * (L if shared_keys else n) for n in (12, 8, 4))
    assert counted == 2 * (24 * weights + router * D + 2 * scores * D)


def test_the_operations_of_a_token_are_those_that_are_multiplied(monkeypatch):
    """Those of the router among them, which reads the tokens of the pass before."""
    for platform in ("CPU", "ACCELERATOR"):  # blocks of one query, so that no masked score is computed
        monkeypatch.setattr(xla, platform, xla.Sizes(rows=1, queries=1, keys=16, written_out=16))
    block = dataclasses.replace(DENSE, depth=ExpertChoiceRecursion(capacities=(1.0, 0.75, 0.25)))
    config = DecoderConfig(vocab_size=20, d_model=D, repeats=1, pattern=(block,), max_length=L)
    graph, state = abstract_model(config).graph, random_model(config)
    batch, keys = packed_batch([[L]], L, vocab_size=20), Keys(KEYS.rows[:1], KEYS.step)
    counted = matmul_flops(lambda state: merge(graph, state)(batch, keys), state)
    assert 3 * counted == pytest.approx(config.flops_per_token(L) * L, rel=1e-12)


def test_shares_of_a_row_are_rounded_as_they_are_written():
    assert ExpertChoiceRecursion(capacities=(0.55, 0.07, 0.011)).tokens(100) == [55, 7, 2]


LATENT = LatentAttentionConfig(heads=2, latent=6, head_dim=4, rotated_dim=2, value_dim=4)
MODELS = {
    name: DecoderConfig(
        vocab_size=20,
        d_model=D,
        repeats=1,
        pattern=(DENSE, dataclasses.replace(DENSE, depth=depth, mixer=mixer)),
        max_length=16,
    )
    for name, mixer, depth in (
        ("expert choice", DENSE.mixer, ExpertChoiceRecursion(capacities=(1.0, 0.5))),
        ("token choice, keys shared", LATENT, TokenChoiceRecursion(times=2, shared_keys=True)),
    )
}


@pytest.mark.parametrize("name", MODELS)
def test_cached_generation_is_the_uncached_forward_and_nothing_looks_ahead(name):
    """But for the choice of the best tokens of a row, in training."""
    graph, state = abstract_model(MODELS[name]).graph, random_model(MODELS[name], seed=2)
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    drawn = generate(graph, state, prompts, tokens=6, sampling=Sampling(temperature=0.0), key=jax.random.key(0))

    @jax.jit
    def logits(tokens, keys):
        return merge(graph, state)(packed_batch([[L]], L, vocab_size=20)._replace(tokens=tokens), keys)

    for prompt, continued in zip(prompts, drawn, strict=True):
        tokens = np.zeros((1, L), np.int32)
        tokens[0, : len(prompt) + 6] = [*prompt, *continued]
        likeliest = np.argmax(logits(tokens, None)[0], axis=-1)
        assert continued == likeliest[len(prompt) - 1 : len(prompt) + 5].tolist()
    assert len(set(drawn[0]) | set(drawn[1])) > 1
    others = [np.append(tokens[:, :-1], [[last]], axis=1).astype(np.int32) for last in range(20)]
    keys = Keys(KEYS.rows[:1], KEYS.step)
    ahead = {
        own is None: max(np.abs(logits(other, own) - logits(tokens, own))[:, :-1].max() for other in others)
        for own in (None, keys)
    }
    assert ahead[True] == 0.0
    assert (ahead[False] > 0.01) == (name == "expert choice")


def test_passes_that_cannot_be_are_refused():
    with refused(ValueError, "capacities=(0.5, 1.0)"):
        ExpertChoiceRecursion(capacities=(0.5, 1.0))
    with refused(ValueError, "capacities=(0.5,)", "1.0"):
        ExpertChoiceRecursion(capacities=(0.5,), shared_keys=True)
    with refused(ValueError, "times=0"):
        TokenChoiceRecursion(times=0)
