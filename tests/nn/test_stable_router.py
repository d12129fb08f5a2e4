"""StableMoE: the light router learns the choice of the other, and from the switch on it chooses and stays as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from messages import refused
from tiny import training_batch
from tolerances import EXACT, assert_close

from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import ExcessLoss, RouterBias, RowLoss
from jaxtrain.nn.moe.dispatch import EveryExpert
from jaxtrain.nn.moe.routers import Stable
from jaxtrain.nn.param import merge, split

WIDTH, WORDS, EXPERTS, SWITCH = 16, 64, 4, 120
BATCH = training_batch(16, 32, vocab_size=WORDS)
CONTEXT = context_of(BATCH, None)
REAL = np.asarray(BATCH.segment_ids) > 0
# What a layer reads of a token: most of it is the token's own, as in the lower layers of a model.
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((WORDS, WIDTH))[BATCH.tokens] + 0.1 * RANDOM.standard_normal((16, 32, WIDTH))
X = X.astype(np.float32)
MIXTURE = MixtureConfig(
    experts=EXPERTS,
    top_k=1,
    expert=GatedMLPConfig(hidden=8),
    router=Stable(vocab_size=WORDS, switch_step=SWITCH, width=8),
    renormalise=False,
    balances=(RowLoss(coefficient=0.1),),
    dispatch=EveryExpert(),
)
GRAPH, START = split(MIXTURE.build(WIDTH, rngs=nnx.Rngs(0)))


def _terms(model):
    return merge(GRAPH, model)(X, CONTEXT).sums.terms


def _chosen(model) -> np.ndarray:
    module = merge(GRAPH, model)
    return np.asarray(module.routing(module.scores(X, CONTEXT), CONTEXT).chosen)[REAL]


def _whole_loss(graph, model):
    """The loss of the task, here a sum of squares, and the terms of the layer."""
    out = merge(graph, model)(X, CONTEXT)
    return jnp.sum((out.y - 1) ** 2) + sum(out.sums.terms.values())


@jax.jit
def _step(model, opt_state):
    """A step of Adam on the loss of the task, here a sum of squares, and on the terms of the layer."""

    def loss(params):
        out = merge(GRAPH, model._replace(params=params))(X, CONTEXT)
        return (jnp.sum((out.y - 1) ** 2) + sum(out.sums.terms.values())) / REAL.sum(), out.sums

    (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(model.params)
    updates, opt_state = TX.update(gradient, opt_state)
    module = merge(GRAPH, model._replace(params=optax.apply_updates(model.params, updates)))
    module.update_buffers(sums.counts)
    return split(module)[1], opt_state, gradient, sums


TX = optax.adam(0.02)


@pytest.fixture(scope="module")
def trained():
    """Return the models before each of the steps around the switch, and what the steps had."""
    model, opt_state, seen = START, TX.init(START.params), []
    for _ in range(SWITCH + 3):
        before = model
        model, opt_state, gradient, sums = _step(model, opt_state)
        seen.append((before, gradient, sums))
    return seen


def test_the_loss_of_the_first_stage_is_balance_and_the_cross_entropy_of_the_light_router():
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), START.params)
    gates = 1 / (1 + np.exp(-X.astype(np.float64) @ params["router"]))
    light = params["light_table"][BATCH.tokens] @ params["light_centroids"]
    chosen = np.argmax(gates, axis=-1)
    of_tokens = np.log(np.exp(light).sum(-1)) - np.take_along_axis(light, chosen[..., None], axis=-1)[..., 0]
    balance = 0.0
    for row in range(16):
        own = (gates[row] / gates[row].sum(-1, keepdims=True))[REAL[row]]
        share = np.bincount(chosen[row][REAL[row]], minlength=EXPERTS) * EXPERTS / REAL[row].sum()
        balance += 0.1 * (own * share).sum()
    found = _terms(START)
    assert float(found["distilled_router"]) == pytest.approx(of_tokens[REAL].sum(), rel=1e-6)
    assert float(found["balance"]) == pytest.approx(balance, rel=1e-6)


def test_the_loss_of_the_first_stage_with_the_balance_of_the_paper_is_the_sum_of_its_three_parts():
    """Task, balance by the loads of the step before, and cross-entropy of the light router, in float64."""
    config = dataclasses.replace(MIXTURE, balances=(ExcessLoss(coefficient=0.3),))
    module = config.build(WIDTH, rngs=nnx.Rngs(0))
    module.update_buffers({"load": jnp.array([10.0, 70.0, 90.0, 30.0])})
    graph, model = split(module)
    loss, x = jax.jit(lambda model: _whole_loss(graph, model))(model), X.astype(np.float64)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    gates = 1 / (1 + np.exp(-x @ params["router"]))
    chosen = np.argmax(gates, axis=-1)
    weight = np.take_along_axis(gates, chosen[..., None], axis=-1)[..., 0]
    gate, up, down = (params["experts"][name]["kernel"][chosen] for name in ("gate", "up", "down"))
    h = np.einsum("BLD,BLDF->BLF", x, gate)
    y = np.einsum("BLF,BLFD->BLD", h / (1 + np.exp(-h)) * np.einsum("BLD,BLDF->BLF", x, up), down)
    task = ((REAL[..., None] * weight[..., None] * y - 1) ** 2).sum()
    balance = 0.3 * sum(
        (load - 50) / 50 * weight[REAL & (chosen == expert)].sum() for expert, load in enumerate((10, 70, 90, 30))
    )
    light = params["light_table"][BATCH.tokens] @ params["light_centroids"]
    of_tokens = np.log(np.exp(light).sum(-1)) - np.take_along_axis(light, chosen[..., None], axis=-1)[..., 0]
    assert abs(balance) > 1
    assert float(loss) == pytest.approx(task + balance + of_tokens[REAL].sum(), rel=1e-6)


def test_the_light_router_agrees_with_what_it_learned_from_and_keeps_its_balance(trained):
    learned, settled = _chosen(trained[SWITCH - 1][0]), _chosen(trained[SWITCH][0])
    assert (learned * settled).sum() >= 0.9 * len(learned)
    fullest = [chosen.sum(0).max() / chosen.sum(0).mean() for chosen in (learned, settled)]
    assert fullest[1] <= fullest[0] * 1.05, fullest


def test_from_the_switch_on_no_token_changes_its_expert_and_the_light_router_has_no_gradient(trained):
    early, later = trained[:SWITCH], trained[SWITCH:]
    assert np.abs(_chosen(early[0][0]) - _chosen(early[60][0])).any(), "it changed before"
    for model, gradient, sums in later:
        assert_close(_chosen(model), _chosen(later[0][0]), EXACT)
        assert not np.asarray(gradient["light_table"]).any() and not np.asarray(gradient["light_centroids"]).any()
        assert float(sums.terms["distilled_router"]) == float(sums.terms["balance"]) == 0.0
        assert np.asarray(gradient["router"]).any(), "it still weighs the experts"
    tables = [model.params["light_table"] for model, *_ in later]
    assert np.abs(tables[0] - tables[-1]).max() > 0, "Adam still moves what is no longer read"


def test_a_bias_that_would_move_the_choice_is_refused():
    with refused(ValueError, "RouterBias(rate=0.1)"):
        dataclasses.replace(MIXTURE, balances=(RouterBias(rate=0.1),))
