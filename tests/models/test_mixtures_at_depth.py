"""Mixtures in blocks that tokens leave out or pass several times: coefficients, competition of tokens, and counts."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import random_model, training_batch
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model, context_of
from jaxtrain.models.sharing import SharedLayers
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.depth import Depth, ExpertChoiceRecursion, MixtureOfDepths, TokenChoiceRecursion
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.fast import FastFeedForwardConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.feed_forward.sigmoid_gated import SigmoidGatedConfig
from jaxtrain.nn.joins import FeedForwardAlone
from jaxtrain.nn.layer import Keys, Out
from jaxtrain.nn.masks import Bidirectional
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.no_mixer import NoMixer
from jaxtrain.nn.moe.balances import LoadLoss, RowLoss, ZLoss
from jaxtrain.nn.moe.dispatch import Capacity
from jaxtrain.nn.moe.routers import Stable
from jaxtrain.nn.moe.selections import ExpertChoice
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.param import axes_of, merge, split

D, L, ROWS, EXPERTS = 8, 12, 3, 4
ATTENTION = AttentionConfig(heads=2, kv_heads=2, head_dim=4)
AHEAD = dataclasses.replace(ATTENTION, mask=Bidirectional())
MIXTURE = MixtureConfig(experts=EXPERTS, top_k=2, expert=MLPConfig(hidden=6))
DEPTHS = {
    "MixtureOfDepths": MixtureOfDepths(capacity=0.25, predictor=4, coefficient=3.0),
    "ExpertChoiceRecursion": ExpertChoiceRecursion(capacities=(0.75, 0.25), coefficient=3.0),
}
PASSES = {"MixtureOfDepths": 1, "ExpertChoiceRecursion": 2}
BATCH = training_batch(ROWS, L, vocab_size=20)
TOKENS = int((BATCH.segment_ids > 0).sum())
KEYS = Keys(jax.random.split(jax.random.key(0), ROWS), jax.random.key(1))
X = np.random.default_rng(0).standard_normal((ROWS, L, D)).astype(np.float32)


def _block(mlp: FeedForwardConfig, depth: Depth | None, mixer: AttentionConfig | None = None):
    """Return a block, by default without a mixer, so that there is less to compile."""
    layers = {"mixer": NoMixer(), "join": FeedForwardAlone()} if mixer is None else {"mixer": mixer}
    return BlockConfig(mlp=mlp, depth=depth, **layers).build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))


@functools.partial(jax.jit, static_argnums=0)
def _of_graph(graph, state, keys):
    return merge(graph, state)(X, context_of(BATCH, keys))


def _run(block, keys=KEYS):
    return _of_graph(*split(block), keys)


@functools.partial(jax.jit, static_argnums=0)
def _sums_of_graph(graph, state):
    return merge(graph, state)(X, context_of(BATCH, KEYS)).sums


def _sums(block):
    """Return the sums alone, for which no expert is computed."""
    return _sums_of_graph(*split(block))


@pytest.mark.parametrize("name", DEPTHS)
def test_coefficients_of_mixtures_are_those_of_a_mean_over_the_tokens_that_pass(name):
    """Routers that know nothing have closed forms: a balance of 1, logits of log(experts), and chances of one half.

    Rows have padding of any length, one more of it than another.
    """
    balances = (RowLoss(coefficient=1.0), LoadLoss(coefficient=1.0), ZLoss(coefficient=5.0))
    stable = Stable(vocab_size=20, switch_step=9, coefficient=7.0)
    block = _block(dataclasses.replace(MIXTURE, balances=balances, router=stable), DEPTHS[name])
    for variable in jax.tree.leaves(
        [block.mlp.router, block.mlp.light_table, block.router], is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        variable[...] = jnp.zeros_like(variable[...])
    if name == "MixtureOfDepths":
        block.predictor_up[...] = jnp.zeros_like(block.predictor_up[...])
    once, terms = PASSES[name] * TOKENS, _sums(block).terms
    desired = {
        "balance": 2.0,
        "router_z": 5.0 * math.log(EXPERTS) ** 2,
        "distilled_router": 7.0 * math.log(EXPERTS),
        "membership": 3.0 * math.log(2),
    }
    assert {key: float(term) / once for key, term in terms.items()} == pytest.approx(desired, rel=1e-6)


@pytest.mark.parametrize("name", DEPTHS)
def test_so_are_those_of_trees(name):
    block = _block(FastFeedForwardConfig(levels=2, leaf=MLPConfig(hidden=4), hardening=0.5), DEPTHS[name])
    block.mlp.gates[...] = jnp.zeros_like(block.mlp.gates[...])
    sums = _sums(block)
    assert float(sums.terms["hardening"]) == pytest.approx(PASSES[name] * TOKENS * 0.5 * 3 * math.log(2), rel=1e-6)
    assert float(block.report(sums.counts)["undecided"]) == pytest.approx(1.0)


def test_the_loss_of_a_part_is_that_of_whole_rows_in_which_the_others_are_padding():
    """With a real router: the mean over the tokens of a row that pass, weighed by all tokens of the row."""
    mlp = dataclasses.replace(MIXTURE, balances=(RowLoss(coefficient=1.0), ZLoss(coefficient=1.0)))
    block, alone = _block(mlp, MixtureOfDepths(capacity=0.25, predictor=4)), _block(mlp, None)
    score, real = X @ np.asarray(block.router[...])[:, 0], BATCH.segment_ids > 0
    rank = np.argsort(np.argsort(np.where(real, -score, np.inf), axis=1), axis=1)
    passing = (rank < L // 4) & real
    found = _sums(block).terms

    @jax.jit
    def of_row(row):
        hidden = BATCH._replace(segment_ids=jnp.where(jnp.arange(ROWS)[:, None] == row, BATCH.segment_ids * passing, 0))
        return alone(X, context_of(hidden, KEYS)).sums.terms

    for name in ("balance", "router_z"):
        desired = sum(float(of_row(row)[name]) * real[row].sum() / passing[row].sum() for row in range(ROWS))
        assert float(found[name]) == pytest.approx(desired, rel=1e-5)


@pytest.mark.parametrize("keys", [KEYS, None], ids=["training", "evaluation"])
@pytest.mark.parametrize("depth", [*DEPTHS.values(), TokenChoiceRecursion(times=2)], ids=lambda d: type(d).__name__)
def test_routers_compute_in_float32_on_every_device(depth, keys):
    """Products of the depth alone, with layers that compute nothing."""
    own = depth.build(D, rngs=nnx.Rngs(0))

    def stream(x):
        return depth(lambda x, context, state: Out(x), x, context_of(BATCH, keys), None, own).y

    jaxpr = jax.make_jaxpr(stream)(X.astype(jnp.bfloat16))
    dots = [equation.params for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert dots and all(dot["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for dot in dots)


def _with(mlp: FeedForwardConfig, depth: Depth, mixer: AttentionConfig = ATTENTION) -> BlockConfig:
    return BlockConfig(mixer=mixer, mlp=mlp, depth=depth)


@pytest.mark.parametrize("name", DEPTHS)
def test_tokens_that_would_compete_with_others_in_evaluation_are_refused(name):
    depth, drops = DEPTHS[name], dataclasses.replace(MIXTURE, dispatch=Capacity(factor=1.0))
    with refused(ValueError, "dispatch=Capacity(factor=1.0)", f"depth={depth!r}", "dispatch=@Dropless()"):
        _with(SigmoidGatedConfig(layer=drops), depth)
    with refused(ValueError, "selection=ExpertChoice()", f"depth={depth!r}", "selection=@TopK()"):
        _with(dataclasses.replace(MIXTURE, selection=ExpertChoice()), depth)


@pytest.mark.parametrize(
    "change", [{"dispatch": Capacity(factor=1.0)}, {"selection": ExpertChoice()}], ids=["dispatch", "selection"]
)
@pytest.mark.parametrize(
    ("depth", "mixer"),
    [(TokenChoiceRecursion(times=2), None), (MixtureOfDepths(capacity=0.5, predictor=None), AHEAD)],
    ids=["TokenChoiceRecursion", "MixtureOfDepths"],
)
def test_they_compete_where_the_same_tokens_pass_in_training_and_in_evaluation(depth, mixer, change):
    block = _block(dataclasses.replace(MIXTURE, **change), depth, mixer)
    trained, evaluated = _run(block), _run(block, None)
    assert_close(trained.y, evaluated.y, CLOSED_FORM_LAYER)


def _model(depth: Depth | None = None, mlp: FeedForwardConfig = MIXTURE, **changes) -> DecoderConfig:
    block = BlockConfig(mixer=ATTENTION, mlp=mlp, depth=depth)
    return DecoderConfig(vocab_size=20, d_model=D, max_length=L, **({"repeats": 1, "pattern": (block,)} | changes))


OWN = {  # the parameters of a depth, and how many of them a token multiplies with
    MixtureOfDepths(capacity=0.25, predictor=4): (D + 4 * D + 4 + 1, D + 4 * D + 4),
    ExpertChoiceRecursion(capacities=(1.0, 0.5, 0.25)): (3 * D, 3 * D * (1 + 1 + 0.5) / 3),
    TokenChoiceRecursion(times=3): (3 * D, 3 * D),
}


@pytest.mark.parametrize("depth", OWN, ids=lambda depth: type(depth).__name__)
def test_a_parameter_is_active_once_and_multiplies_in_every_pass(depth):
    """Half of the experts in a pass, whatever the number of passes. 6 N D counts each pass."""
    attention, router, experts, norms = 4 * D * D, D * EXPERTS, EXPERTS * 2 * D * 6, 2 * D
    outside, head = 2 * 20 * D + D, 20 * D
    layers = attention + router + experts / 2
    own, multiplied = OWN[depth]
    config = _model(depth)
    router_active = multiplied if isinstance(depth, ExpertChoiceRecursion) else own
    active = min(depth.passes, 1) * (layers + norms) + router_active + outside
    assert config.active_parameter_count == active
    mixing = sum(block.mixing_flops(L) for block in config.blocks)
    assert config.flops_per_token(L) == 6 * (depth.passes * layers + multiplied + head) + mixing


def test_a_shared_mixture_is_active_as_in_one_pass_and_multiplies_in_every_repeat():
    shared, apart = (_model(repeats=5, sharing=sharing) for sharing in (SharedLayers(), None))
    assert shared.flops_per_token(L) == apart.flops_per_token(L)
    experts = EXPERTS * 2 * D * 6
    assert shared.active_parameter_count == shared.parameter_count - experts / 2
    facts = axes_of(merge(abstract_model(shared).graph, random_model(shared)).stacks["blocks"]).params
    up = facts["blocks"][0]["mlp"]["experts"]["up"]["kernel"]
    assert (up.used, up.passes) == (0.5, 5.0)
