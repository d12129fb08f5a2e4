"""A plain mixture is the sum that it is said to be, balances by its loss and its bias, and is the same on any mesh."""

import jax.numpy as jnp
import numpy as np
import pytest
from counted import CountedConfig
from flax import nnx
from messages import refused
from tiny import training_batch
from tolerances import CLOSED_FORM, EXACT, SAME_SUMS, assert_close

from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig

EXPERT, WIDTH, EXPERTS = GatedMLPConfig(hidden=24), 16, 4
BATCH = training_batch(3, 12, vocab_size=64)
CONTEXT = context_of(BATCH, None)
X = np.random.default_rng(0).standard_normal((3, 12, WIDTH)).astype(np.float32)


def _built(**changes) -> nnx.Module:
    config = MixtureConfig(**{"experts": EXPERTS, "top_k": 2, "expert": EXPERT} | changes)
    return config.build(WIDTH, rngs=nnx.Rngs(0))


def _probabilities(module) -> np.ndarray:
    logits = X.astype(np.float64) @ np.asarray(module.router[...], np.float64)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def _expert(module, number: int, x: np.ndarray) -> np.ndarray:
    gate, up, down = (
        np.asarray(getattr(module.experts, name).kernel[...][number], np.float64) for name in ("gate", "up", "down")
    )
    h = x.astype(np.float64) @ gate
    return (h / (1 + np.exp(-h)) * (x @ up)) @ down


@pytest.mark.parametrize(("top_k", "renormalise"), [(1, False), (1, True), (2, True), (2, False), (4, True)])
def test_it_is_the_weighed_sum_of_the_experts_with_the_greatest_probabilities(top_k, renormalise):
    module = _built(top_k=top_k, renormalise=renormalise)
    probabilities = _probabilities(module)
    desired = np.zeros(X.shape)
    for place in np.ndindex(X.shape[:2]):
        best = np.argsort(-probabilities[place])[:top_k]
        total = probabilities[place][best].sum() if renormalise else 1.0
        desired[place] = sum(probabilities[place][e] / total * _expert(module, e, X[place]) for e in best)
    assert_close(module(X, CONTEXT).y, desired.astype(np.float32), CLOSED_FORM)


def test_the_balance_loss_is_that_of_each_row_over_real_tokens():
    module = _built(balance=0.5)
    probabilities, desired = _probabilities(module), 0.0
    for row in range(3):
        own = probabilities[row][BATCH.segment_ids[row] > 0]
        chosen = np.argsort(-own, axis=-1)[:, :2]
        share = np.bincount(chosen.reshape(-1), minlength=EXPERTS) * EXPERTS / (2 * len(own))
        desired += 0.5 * len(own) * (share * own.mean(0)).sum()
    assert float(module(X, CONTEXT).sums.terms["balance"]) == pytest.approx(desired, rel=1e-5)


def test_a_balanced_mixture_has_a_balance_loss_of_its_coefficient():
    module = _built(experts=2, top_k=1, balance=0.5)
    module.router[...] = jnp.zeros_like(module.router[...]).at[0].set(jnp.array([1e-6, -1e-6]))
    x = np.array(X)
    x[:, :, 0] = np.where(np.arange(12) % 2, 1.0, -1.0)
    whole = CONTEXT._replace(segment_ids=np.ones((3, 12), np.int32))
    assert float(module(x, whole).sums.terms["balance"]) / 36 == pytest.approx(0.5, rel=1e-5)


def test_the_bias_changes_the_choice_and_not_the_weights():
    module = _built(bias_rate=0.1, top_k=EXPERTS)
    before = module(X, CONTEXT).y
    module.bias[...] = jnp.array([5.0, -5.0, 0.0, 0.0])
    assert_close(module(X, CONTEXT).y, before, SAME_SUMS)
    module = _built(bias_rate=0.1, top_k=1)
    module.bias[...] = jnp.array([5.0, -5.0, 0.0, 0.0])
    load = module(X, CONTEXT).sums.counts["load"]
    assert_close(load, np.array([(BATCH.segment_ids > 0).sum(), 0, 0, 0], np.float32), EXACT)


def test_a_step_moves_the_bias_towards_the_experts_that_had_less_than_the_mean():
    module = _built(bias_rate=0.1)
    module.update_buffers({"load": jnp.array([3.0, 9.0, 6.0, 6.0])})
    assert_close(module.bias[...], np.array([0.1, -0.1, 0.0, 0.0], np.float32), CLOSED_FORM)


def test_more_experts_a_token_than_there_are_is_refused():
    with refused(ValueError, "top_k=5", "experts=4"):
        _built(top_k=5)


def test_an_expert_with_a_buffer_is_refused():
    with refused(ValueError, "expert=CountedConfig(hidden=8", "threshold"):
        _built(expert=CountedConfig(hidden=8))
