"""Training with every expert, by mutual information: Pan et al. (2024), arXiv:2404.05567."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import training_batch
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import MutualInformation
from jaxtrain.nn.moe.dispatch import Dropless, EveryExpert
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.nn.param import merge, split

WIDTH, EXPERTS = 16, 8
CONTEXT = context_of(training_batch(4, 16, vocab_size=64), None)
X = np.random.default_rng(0).standard_normal((4, 16, WIDTH)).astype(np.float32)
DENSE = MixtureConfig(
    experts=EXPERTS,
    top_k=EXPERTS,
    expert=GatedMLPConfig(hidden=8),
    balances=(MutualInformation(coefficient=0.5),),
    dispatch=EveryExpert(),
)


def _information(p: jax.Array, real: np.ndarray) -> jax.Array:
    loss = MutualInformation(coefficient=1.0).loss(Scores(p, p), jnp.ones_like(p), real, {})
    return -loss["mutual_information"] / real.sum()


def _found(p: np.ndarray, real: np.ndarray) -> float:
    return float(jax.jit(_information)(p, real))


@pytest.mark.parametrize(
    ("experts", "desired"),
    [(None, 0.0), (np.zeros(16, int), 0.0), (np.arange(16) % 8, np.log(8.0))],
    ids=["uniform", "collapsed", "balanced"],
)
def test_the_information_of_a_token_about_its_expert_is_the_published_one(experts, desired):
    """The last four tokens of a row are padding, in which all experts are said to be sure of the first."""
    p = np.full((1, 16, 8), 1 / 8) if experts is None else np.eye(8)[experts][None]
    whole = np.concatenate([p, np.eye(8)[np.zeros(4, int)][None]], axis=1).astype(np.float32)
    real = (np.arange(20) < 16).astype(np.float32)[None]
    assert _found(whole, real) == pytest.approx(desired, abs=1e-6)


def test_the_loss_is_a_sum_over_rows_with_finite_gradients():
    random = np.random.default_rng(1)
    p = random.dirichlet(np.full(8, 0.3), (3, 16)).astype(np.float32)
    p[0, 0] = np.eye(8)[3]
    real = np.ones((3, 16), np.float32)
    desired = 0.0
    for row in p.astype(np.float64):
        mean = row.mean(0)
        desired += np.mean(np.sum(np.where(row > 0, row * np.log(np.maximum(row, 1e-30) / mean), 0), axis=-1)) / 3
    assert _found(p, real) == pytest.approx(desired, rel=1e-5)
    assert np.isfinite(jax.jit(jax.grad(lambda p: _information(p, real)))(p)).all()


@pytest.fixture(scope="module")
def trained():
    """The output of a dense training step, and its gradients by expert."""
    graph, model = split(DENSE.build(WIDTH, rngs=nnx.Rngs(0)))

    def loss(params):
        out = merge(graph, model._replace(params=params))(X, CONTEXT)
        return jnp.sum(out.y**2) + out.sums.terms["mutual_information"], out.y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(model.params)
    return model, gradient, y


def _norms(gradient) -> np.ndarray:
    return np.sqrt(sum(np.square(leaf).sum((1, 2)) for leaf in jax.tree.leaves(gradient["experts"])))


def test_every_expert_learns_from_every_step_and_of_one_a_token_some_do_not(trained):
    model, gradient, _ = trained
    assert (_norms(gradient) > 0).all() and np.abs(gradient["router"]).min() > 0
    graph, _ = split(dataclasses.replace(DENSE, top_k=1, renormalise=False).build(WIDTH, rngs=nnx.Rngs(0)))
    x = np.broadcast_to(X[:, :1], X.shape)  # four different tokens
    alone = jax.jit(jax.grad(lambda params: jnp.sum(merge(graph, model._replace(params=params))(x, CONTEXT).y ** 2)))
    sparse = alone(model.params)
    assert (_norms(sparse) == 0).sum() >= 4


def test_inference_with_all_experts_is_training_and_with_some_it_is_the_best_ones(trained):
    model, _, y = trained

    def inferred(top_k: int):
        config = dataclasses.replace(DENSE, top_k=top_k, dispatch=Dropless(), balances=())
        graph, _ = split(config.build(WIDTH, rngs=nnx.Rngs(0)))
        return jax.jit(lambda model: merge(graph, model)(X, CONTEXT).y)(model)

    assert_close(inferred(EXPERTS), y, CLOSED_FORM_LAYER)
    p = np.asarray(jax.nn.softmax(X @ model.params["router"]))
    weights = np.where(p >= np.sort(p, axis=-1)[..., -2:-1], p, 0)
    weights = weights / weights.sum(-1, keepdims=True) * np.asarray(CONTEXT.real)[..., None]
    gate, up, down = (np.asarray(model.params["experts"][name]["kernel"]) for name in ("gate", "up", "down"))
    h = np.einsum("BLD,EDF->EBLF", X, gate)
    each = np.einsum("EBLF,EFD->EBLD", h / (1 + np.exp(-h)) * np.einsum("BLD,EDF->EBLF", X, up), down)
    assert_close(inferred(2), np.einsum("EBLD,BLE->BLD", each, weights).astype(np.float32), CLOSED_FORM_LAYER)
