"""The variance within clusters of experts, and the bias that keeps the number of computing experts at a target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused

from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import ClusterLoss, TargetBias
from jaxtrain.nn.moe.balances.base import Numbers
from jaxtrain.nn.moe.routing import Scores, best


def test_the_cluster_loss_is_the_variance_within_clusters_of_the_probabilities_of_real_tokens():
    random = np.random.default_rng(0)
    logits, real = random.standard_normal((2, 5, 6)).astype(np.float32), random.random((2, 5)) < 0.7
    scores = Scores(jnp.asarray(logits), jax.nn.softmax(logits))
    probabilities = np.asarray(scores.weights, np.float64)
    desired = 0.5 * np.var(probabilities.reshape(2, 5, 2, 3), axis=-1).sum(-1)[real].sum()
    found = ClusterLoss(clusters=2, coefficient=0.5).loss(scores, scores.weights, jnp.asarray(real, jnp.float32), {})
    assert float(found["cluster"]) == pytest.approx(desired, rel=1e-5)
    alone = ClusterLoss(clusters=6, coefficient=0.5).loss(scores, scores.weights, jnp.asarray(real, jnp.float32), {})
    assert float(alone["cluster"]) == 0.0, "a cluster of one expert has no variance"


def test_the_bias_drives_the_number_of_computing_experts_to_its_target_and_their_loads_together():
    """LongCat-Flash: a random router of 16 experts and 8 zero experts, four choices a token, three of them computed."""
    numbers, balance = Numbers(experts=16, zero_experts=8, top_k=4), TargetBias(rate=0.5, per_token=3.0)
    favour = jnp.asarray(np.random.default_rng(1).standard_normal(24), jnp.float32)

    def step(bias, key):
        scores = jax.nn.softmax(favour[None] + jax.random.normal(key, (512, 24)), axis=-1)
        chosen = best(scores + bias[None], 4)
        own = {"bias": _Held(bias)}
        balance.update(jnp.sum(chosen, axis=0), own, numbers)
        return own["bias"].value, chosen[:, :16]

    bias, chosen = jax.lax.scan(step, jnp.zeros(24), jax.random.split(jax.random.key(2), 400))
    of_tokens = np.asarray(chosen[-20:]).sum(-1)
    load = np.asarray(chosen[-20:]).sum((0, 1))
    assert abs(of_tokens.mean() - 3) < 0.05 and of_tokens.min() < 2 and of_tokens.max() == 4
    assert load.std() / load.mean() < 0.06
    before = np.asarray(chosen[0]).sum(0)
    assert before.std() / before.mean() > 0.5, "it had something to do"
    assert not np.asarray(bias)[16:].any() and np.asarray(bias)[:16].all()


class _Held:
    """An array in the place of a buffer."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, _):
        return self.value

    def __setitem__(self, _, value):
        self.value = value


@pytest.mark.parametrize(
    ("balance", "facts"),
    [
        (TargetBias(rate=0.1, per_token=2.0), ("per_token=2.0", "top_k=2")),
        (TargetBias(rate=0.1, per_token=1.0), ("per_token=1.0", "zero_experts=1", 1)),
        (ClusterLoss(clusters=3, coefficient=0.1), ("clusters=3", 5)),
    ],
    ids=repr,
)
def test_balances_that_do_not_fit_the_numbers_of_experts_are_refused(balance, facts):
    with refused(ValueError, *facts):
        MixtureConfig(experts=4, zero_experts=1, top_k=2, expert=GatedMLPConfig(hidden=8), balances=(balance,))
