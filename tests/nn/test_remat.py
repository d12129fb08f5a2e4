"""Every remat policy computes the same; they differ in what is kept for the backward pass."""

import dataclasses
import math

import jax
import pytest
from flax import nnx
from jaxpr_dots import dots
from tiny import bytes_of, random_params, training_batch, variant
from tolerances import SAME_GRADIENT, assert_close

from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.remat import FullRemat, NoRemat, OffloadOutputs, SaveDots, SaveExchanged, SaveOutputs
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.train.step import step_keys

REPEATS = 3
BATCH = training_batch(4, 16, vocab_size=64)
KEYS = step_keys(jax.random.key(0), 4)


def _config(policy):
    return variant(repeats=REPEATS, dropout=0.2, remat=policy)


PARAMS = random_params(_config(NoRemat()))


def _loss(policy):
    return _loss_of(_config(policy))


def _loss_of(config):
    graph, _, _ = abstract_model(config)
    return lambda params: NextToken()(nnx.merge(graph, params), BATCH, KEYS).minimised["nll"]


@pytest.fixture(scope="module")
def kept_everything():
    config = dataclasses.replace(_config(NoRemat()), scan=False)
    return jax.jit(jax.value_and_grad(_loss_of(config)))(PARAMS)


POLICIES = [NoRemat(), FullRemat(offload=True), SaveOutputs(), SaveDots(), SaveExchanged(), OffloadOutputs()]


@pytest.mark.parametrize("policy", POLICIES, ids=type)
def test_a_policy_changes_neither_loss_nor_gradient(policy, kept_everything):
    assert_close(jax.jit(jax.value_and_grad(_loss(policy)))(PARAMS), kept_everything, SAME_GRADIENT)


def _residuals(policy) -> list:
    return jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(_loss(policy), params)[1], PARAMS))


def _residual_bytes(policy) -> int:
    return bytes_of(_residuals(policy))


def test_policies_keep_less_and_less():
    kept = [_residual_bytes(policy) for policy in (NoRemat(), SaveDots(), SaveOutputs(), FullRemat())]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4, kept


def test_saving_outputs_keeps_the_mixers_output_of_each_block_beside_its_input():
    activation = 4 * 16 * 32 * 4  # batch, length, width, bytes of float32
    # The feed-forward layer's output is the input of the next repeat, which is kept anyway.
    assert _residual_bytes(SaveOutputs()) - _residual_bytes(FullRemat()) == REPEATS * activation


def _stacks(config) -> list:
    """Return the shapes of one repeat of all that the forward scan stacks for the backward one."""
    gradient = jax.make_jaxpr(jax.grad(_loss_of(config)))(PARAMS)
    forward = next(e for e in gradient.eqns if e.primitive is jax.lax.scan_p and not e.params["reverse"])
    return [x.aval.shape[1:] for x in forward.outvars if x.aval.shape[:1] == (REPEATS,)]


def test_a_scan_without_remat_stacks_less_than_half_of_the_residuals_and_repeats_no_product(monkeypatch):
    config = _config(NoRemat())
    stacked, products = _stacks(config), dots(jax.grad(_loss_of(config)), PARAMS)
    monkeypatch.setattr(NoRemat, "in_scan", NoRemat.wrap)
    assert sum(map(math.prod, stacked)) < 0.5 * sum(map(math.prod, _stacks(config)))
    assert len(products) == len(dots(jax.grad(_loss_of(config)), PARAMS))


@pytest.mark.parametrize(
    ("policy", "on_host", "on_device"), [(OffloadOutputs(), 1, 1), (FullRemat(offload=True), 1, 0), (FullRemat(), 0, 1)]
)
def test_what_is_offloaded_waits_in_host_memory_alone(policy, on_host, on_device):
    (forward,) = (
        equation
        for equation in jax.make_jaxpr(jax.grad(_loss(policy)))(PARAMS).eqns
        if equation.primitive is jax.lax.scan_p and not equation.params["reverse"]
    )
    kept = [str(x.aval) for x in forward.outvars]
    assert (kept.count("float32<host>[3,4,16,32]"), kept.count("float32[3,4,16,32]")) == (on_host, on_device)
