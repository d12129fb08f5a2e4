"""Log-likelihoods from packed rows are those of every request alone, and those of lm-eval's own model."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused
from tiny import random_model, variant
from tolerances import SAME_LOGITS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.masks import Bidirectional
from jaxtrain.nn.param import merge
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.surgery.huggingface import import_folder
from jaxtrain.train import scoring
from jaxtrain.train.scoring import Request, make_scoring_step, score, truncated

GOLDENS = Path(__file__).parents[1] / "golden"
CONFIG = variant(vocab_size=50, vocab_multiple=8)  # so that a part of the table is no words; max_length is 32


def requests_of(sizes, vocab_size, seed=0):
    random = np.random.default_rng(seed)
    return [Request(*(random.integers(0, vocab_size, size).tolist() for size in pair)) for pair in sizes]


def scored(config, model, requests, *, sequence_length=16, mesh=None):
    graph = abstract_model(config).graph
    return score(
        make_scoring_step(graph),
        model,
        requests,
        config=config,
        batch_size=4,
        sequence_length=sequence_length,
        mesh=mesh or MeshConfig(fsdp=2, tensor=2, data=2).build(),
    )


def alone(config, model, request):
    """Return the log-likelihood in float64, and the likeliest tokens, of a request in a row of its own."""
    ids = [*request.context, *request.continuation][-(config.max_length + 1) :]
    row = np.zeros((4, 1, config.max_length), np.int32)
    row[:2, 0, : len(ids) - 1] = ids[:-1], ids[1:]
    row[2:, 0, : len(ids) - 1] = np.ones(len(ids) - 1), np.arange(len(ids) - 1)
    logits = np.asarray(_logits(abstract_model(config).graph, model, row), np.float64)[
        0, len(ids) - 1 - len(request.continuation) :
    ]
    logits = logits[: len(request.continuation), : config.vocab_size]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(log_p[np.arange(len(logits)), list(request.continuation)].sum()), logits.argmax(-1).tolist()


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, model, row):
    return merge(graph, model)(Batch(row[0], row[1], jnp.ones(row[0].shape), row[2], row[3]))


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


def test_packed_on_a_mesh_each_request_has_what_it_has_alone(model, monkeypatch):
    """Of lengths from one token to more than the context, and whether it is what the model would say."""
    monkeypatch.setattr(scoring, "TOKENS", 12)  # which does not divide a row
    sizes = [(1, 1), (3, 2), (9, 4), (5, 1), (2, 7), (30, 3), (1, 32), (40, 5), (16, 1), (2, 2), (4, 1)]
    requests = requests_of(sizes, CONFIG.vocab_size)
    for index in (3, 10):  # of one token: take the likeliest
        likeliest = alone(CONFIG, model, requests[index])[1]
        requests[index] = requests[index]._replace(continuation=likeliest)
    found = scored(CONFIG, model, requests)
    expected = [alone(CONFIG, model, request) for request in requests]
    assert_close([f.log_likelihood for f in found], [e[0] for e in expected], SAME_LOGITS)
    greedy = [tokens == list(request.continuation) for (_, tokens), request in zip(expected, requests, strict=True)]
    assert [f.greedy for f in found] == greedy and greedy[3] and greedy[10] and sum(greedy) < 5
    assert truncated(requests, CONFIG) == 1


def test_scores_are_those_of_lm_eval_with_transformers():
    """Recorded by scripts/peers/harness.py, which lets lm-eval run the same weights in PyTorch."""
    config, params = import_folder(GOLDENS / "huggingface" / "llama")
    golden = json.loads((GOLDENS / "harness" / "golden.json").read_text())
    requests = [Request(*pair) for pair in golden["tokens"]]
    assert truncated(requests, config)
    found = scored(config, ModelState(params), requests, sequence_length=32, mesh=MeshConfig(data=2).build())
    theirs = [answer for _, _, answer in golden["choices"]]
    assert_close([f.log_likelihood for f in found], [log_likelihood for log_likelihood, _ in theirs], SAME_LOGITS)
    assert [f.greedy for f in found] == [greedy for _, greedy in theirs] and any(f.greedy for f in found)


@pytest.mark.parametrize(("context", "continuation", "fact"), [(0, 1, "context"), (1, 0, "continuation"), (1, 33, 33)])
def test_request_that_has_no_score_is_refused(model, context, continuation, fact):
    with refused(ValueError, fact):
        scored(CONFIG, model, [Request([1] * context, [1] * continuation)])


def test_no_requests_have_no_scores(model):
    assert scored(CONFIG, model, []) == []


def test_model_that_sees_tokens_ahead_is_refused():
    block = CONFIG.pattern[0]
    config = variant(
        pattern=(dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, mask=Bidirectional())),)
    )
    with refused(ValueError, "causal"):
        scored(config, random_model(config), [Request([1], [2])])
