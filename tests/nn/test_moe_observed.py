"""What is counted of routing is what loops over tokens count, on any mesh; and routing can be replayed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from replay import Recorded, Replayed, Tape
from tiny import random_model, training_batch, variant
from tolerances import CLOSED_FORM, EXACT, SAME_LOGITS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model, context_of
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.nn.moe.dispatch import Capacity, Dispatch, Dropless, EveryExpert
from jaxtrain.nn.moe.observed import ROUTING
from jaxtrain.nn.param import merge, split
from jaxtrain.sharding import constrain

WIDTH, EXPERTS, ROWS, LENGTH = 16, 8, 8, 32
BATCH = training_batch(ROWS, LENGTH, vocab_size=64)
CONTEXT = context_of(BATCH, None, taps=(ROUTING,))
X = np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
BIAS = np.linspace(-0.1, 0.1, EXPERTS).astype(np.float32)
MIXTURE = MixtureConfig(
    experts=EXPERTS,
    top_k=2,
    expert=GatedMLPConfig(hidden=8),
    balances=(RouterBias(rate=0.1),),
    dispatch=Capacity(factor=1.0),
)


def _numpy(router: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of real tokens and the two experts of each, [tokens, 8] and [tokens, 2]."""
    logits = X[BATCH.segment_ids > 0].astype(np.float64) @ router.astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return p, np.argsort(-(p + BIAS), axis=-1)[:, :2]


@pytest.mark.parametrize("mesh", [None, MeshConfig(expert=4, fsdp=1, tensor=2)], ids=["one device", "expert x tensor"])
def test_pairs_of_experts_and_entropies_are_those_of_loops_over_real_tokens(mesh):
    """Kang et al. (2025), arXiv:2505.20225: N_ef over N_e is how often experts go together."""
    graph, model = split(MIXTURE.build(WIDTH, rngs=nnx.Rngs(0)))
    model = model._replace(buffers={**model.buffers, "bias": BIAS})
    count = jax.jit(lambda x: merge(graph, model)(constrain(x, "batch", "length", None), CONTEXT).sums.counts)
    if mesh is None:
        counts = count(X)
    else:
        with jax.set_mesh(mesh.build()):
            counts = count(X)
    p, chosen = _numpy(np.asarray(model.params["router"]))
    together = np.zeros((EXPERTS, EXPERTS), np.float32)
    for pair in chosen:
        for one in pair:
            for other in pair:
                together[one, other] += 1
    assert_close(counts["together"], together, EXACT)
    assert_close(counts["load"], np.diag(together), EXACT)
    assert float(counts["tokens"]) == len(p) and float(counts["load"].sum()) == 2 * len(p)
    assert_close(counts["entropy"], np.float32(-(p * np.log(p)).sum()), CLOSED_FORM)


def test_a_router_in_bfloat16_sends_tokens_elsewhere_and_one_in_float32_sends_none():
    """Fedus et al. (2021), arXiv:2101.03961, section 2.4: selective precision, in a model that computes in bfloat16."""
    module = dataclasses.replace(MIXTURE, balances=()).build(WIDTH, rngs=nnx.Rngs(0))
    x = np.asarray(jnp.asarray(X, jnp.bfloat16).astype(jnp.float32))
    router = np.asarray(module.router[...])
    counts = module(jnp.asarray(x, jnp.bfloat16), CONTEXT).sums.counts
    exact = np.argsort(-(x.astype(np.float64) @ np.asarray(router, np.float64)), axis=-1)[..., :2]
    real = BATCH.segment_ids > 0
    load = np.bincount(exact[real].reshape(-1), minlength=EXPERTS)
    assert_close(counts["load"], load.astype(np.float32), EXACT)
    low = np.asarray(jnp.asarray(router, jnp.bfloat16).astype(jnp.float32))
    p = np.asarray(jax.nn.softmax(x @ low).astype(jnp.bfloat16).astype(jnp.float32))
    there = np.argsort(-p, axis=-1, kind="stable")[..., :2]
    moved = (np.sort(there, axis=-1) != np.sort(exact, axis=-1)).any(-1) & real
    assert float(counts["moved"]) == moved.sum() > 0


@pytest.fixture(scope="module")
def recorded():
    """The hidden states and the loads of a model, and the choices of its layers."""
    tape = Tape()
    y, load = _run(Recorded(tape=tape), Dropless(), "float32")
    return y, load, tape


def _run(selection, dispatch: Dispatch, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    mixture = dataclasses.replace(MIXTURE, selection=selection, dispatch=dispatch, balances=())
    block = dataclasses.replace(variant().pattern[0], mlp=mixture)
    config = variant(pattern=(block,), compute_dtype=dtype)
    graph = abstract_model(config).graph
    out = jax.jit(lambda model: merge(graph, model).hidden(BATCH))(random_model(config))
    return np.asarray(out.y, np.float32), np.asarray(out.sums.counts["blocks"]["0"]["mlp"]["load"])


def test_a_replayed_routing_makes_two_precisions_comparable(recorded):
    """Without it other tokens go elsewhere, and their outputs have nothing to do with each other."""
    y, load, tape = recorded
    assert [choice.shape for choice in tape.choices] == [(ROWS, LENGTH, EXPERTS)] * 2
    tape.rewind()
    replayed, same_load = _run(Replayed(tape=tape), Dropless(), "bfloat16")
    assert_close(same_load, load, EXACT)
    other = Tape()
    own, _ = _run(Recorded(tape=other), Dropless(), "bfloat16")
    assert any((mine != theirs).any() for mine, theirs in zip(other.choices, tape.choices, strict=True))
    assert np.abs(replayed - y).max() < np.abs(own - y).max()


def test_a_replayed_routing_is_that_of_another_dispatch(recorded):
    y, load, tape = recorded
    tape.rewind()
    found, same_load = _run(Replayed(tape=tape), EveryExpert(), "float32")
    assert_close(same_load, load, EXACT)
    assert_close(found, y, SAME_LOGITS)
