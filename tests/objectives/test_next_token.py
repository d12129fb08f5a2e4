"""Cross-entropy and z-loss against their formulas in float64."""

import jax
import numpy as np
import pytest
from tiny import training_batch
from tolerances import CLOSED_FORM_LAYER, EXACT, assert_close

from jaxtrain.objectives.next_token import NextToken, cross_entropy

ROWS, LENGTH, VOCAB = 3, 7, 11
BATCH = training_batch(ROWS, LENGTH, vocab_size=VOCAB)
LOGITS = (4 * np.random.default_rng(0).standard_normal((ROWS, LENGTH, VOCAB))).astype(np.float32)


def _log_z() -> np.ndarray:
    return np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))


def _nll() -> np.ndarray:
    return _log_z() - np.take_along_axis(LOGITS, BATCH.targets[..., None], -1)[..., 0]


def test_cross_entropy_is_minus_the_log_probability_of_the_target():
    assert_close(cross_entropy(LOGITS, BATCH.targets), (_nll(), _log_z()), CLOSED_FORM_LAYER)


def test_the_gradient_of_cross_entropy_is_probability_minus_one_at_the_target():
    gradient = jax.grad(lambda logits: cross_entropy(logits, BATCH.targets)[0].sum())(LOGITS)
    probability = np.exp(LOGITS - _log_z()[..., None])
    assert_close(gradient, probability - np.eye(VOCAB)[BATCH.targets], CLOSED_FORM_LAYER)


def test_cross_entropy_of_huge_logits_is_finite():
    assert_close(cross_entropy(LOGITS * 1e4, BATCH.targets)[1], LOGITS.max(-1) * 1e4, EXACT)


@pytest.mark.parametrize("z_loss", [0.0, 0.25])
def test_the_loss_is_a_weighted_sum_of_cross_entropy_and_z_loss(z_loss):
    weights = np.random.default_rng(1).random((ROWS, LENGTH)).astype(np.float32)
    sums = NextToken(z_loss=z_loss)(lambda batch, keys: LOGITS, BATCH._replace(weights=weights), None)
    desired = (weights * (_nll() + z_loss * _log_z() ** 2)).sum()
    assert float(sums.loss) == pytest.approx(desired, rel=1e-5)
    assert float(sums.metrics["nll"]) == pytest.approx((weights * _nll()).sum(), rel=1e-5)
    assert float(sums.weight) == pytest.approx(weights.sum(), rel=1e-6)


def test_tokens_of_weight_zero_cost_nothing():
    def loss(logits):
        return NextToken(z_loss=0.1)(lambda batch, keys: logits, BATCH, None).loss

    unweighted = BATCH.weights == 0
    assert unweighted.any()
    assert not np.asarray(jax.grad(loss)(LOGITS))[unweighted].any()


def test_a_negative_z_loss_is_refused():
    with pytest.raises(ValueError, match=r"z_loss=-0.1"):
        NextToken(z_loss=-0.1)
