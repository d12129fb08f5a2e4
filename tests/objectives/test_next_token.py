"""The loss against its formula in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import training_batch

from jaxtrain.nn.layer import Out
from jaxtrain.objectives.base import means
from jaxtrain.objectives.next_token import NextToken

ROWS, LENGTH, VOCAB = 3, 7, 11
BATCH = training_batch(ROWS, LENGTH, vocab_size=VOCAB)
LOGITS = (4 * np.random.default_rng(0).standard_normal((ROWS, LENGTH, VOCAB))).astype(np.float32)


def _log_z() -> np.ndarray:
    return np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))


def _nll() -> np.ndarray:
    return _log_z() - np.take_along_axis(LOGITS, BATCH.targets[..., None], -1)[..., 0]


class _Model(NamedTuple):
    """A model whose logits are given: its hidden states, of which its head does nothing but the cross-entropy."""

    logits: jax.Array

    def hidden(self, batch, keys):
        return Out(self.logits)

    @property
    def head(self):
        return self

    def cross_entropy(self, x, targets):
        log_z = jax.nn.logsumexp(x, axis=-1)
        return log_z - jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0], log_z


@pytest.mark.parametrize("z_loss", [0.0, 0.25])
def test_the_loss_is_a_weighted_mean_of_cross_entropy_and_z_loss(z_loss):
    weights = np.random.default_rng(1).random((ROWS, LENGTH)).astype(np.float32)
    objective, batch = NextToken(z_loss=z_loss), BATCH._replace(weights=weights)
    found = means(objective(_Model(LOGITS), batch, None).minimised, objective.weights(batch))
    desired = {"nll": weights * _nll()} | ({"z_loss": weights * z_loss * _log_z() ** 2} if z_loss else {})
    assert found.keys() == desired.keys()
    for name, values in desired.items():
        assert float(found[name]) == pytest.approx(values.sum() / weights.sum(), rel=1e-5)


def test_tokens_of_weight_zero_cost_nothing():
    def loss(logits):
        return sum(NextToken(z_loss=0.1)(_Model(logits), BATCH, None).minimised.values())

    unweighted = BATCH.weights == 0
    assert unweighted.any()
    assert not np.asarray(jax.grad(loss)(LOGITS))[unweighted].any()


def test_a_negative_z_loss_is_refused():
    with pytest.raises(ValueError, match=r"z_loss=-0.1"):
        NextToken(z_loss=-0.1)
