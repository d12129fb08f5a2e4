"""What holds of every mixture: of its losses, its counts, its parameters and its padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import packed_batch, training_batch
from tolerances import CLOSED_FORM, EXACT, assert_close

from jaxtrain.models.decoder import DecoderConfig, context_of
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.layer import Out
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.moe.balances import LoadLoss, MutualInformation, RouterBias, RowLoss, ZLoss
from jaxtrain.nn.moe.dispatch import Capacity, Dropless, EveryExpert
from jaxtrain.nn.moe.selections import GroupLimited, TopK
from jaxtrain.nn.param import merge, split

WIDTH, EXPERTS, EXPERT = 16, 4, GatedMLPConfig(hidden=8)
BATCH = training_batch(3, 12, vocab_size=64)
CONTEXT = context_of(BATCH, None)
WHOLE = context_of(packed_batch([[12]] * 3, 12, vocab_size=64), None)
X = np.random.default_rng(0).standard_normal((3, 12, WIDTH)).astype(np.float32)
LOSSES = (RowLoss(coefficient=1.0), ZLoss(coefficient=0.5), MutualInformation(coefficient=0.25))


def _built(**changes) -> nnx.Module:
    return MixtureConfig(**{"experts": EXPERTS, "top_k": 2, "expert": EXPERT} | changes).build(WIDTH, rngs=nnx.Rngs(0))


def _out(module, x, context=CONTEXT) -> Out:
    graph, model = split(module)
    return jax.jit(lambda model, x: merge(graph, model)(x, context))(model, x)


def _balance(module, x) -> float:
    return float(_out(module, x).sums.terms["balance"]) / float(CONTEXT.real.sum())


@pytest.mark.parametrize("top_k", [1, 2])
def test_uniform_logits_have_a_balance_loss_of_one_whatever_is_chosen(top_k):
    """Fedus et al. (2021), arXiv:2101.03961, equation 4. All tokens have the same experts here."""
    module = _built(top_k=top_k, renormalise=False, balances=(RowLoss(coefficient=1.0), LoadLoss(coefficient=2.0)))
    module.router[...] = jnp.zeros((WIDTH, EXPERTS))
    assert _balance(module, X) == pytest.approx(1.0 + 2.0, rel=1e-6)


def test_a_collapsed_router_has_a_balance_loss_of_the_number_of_experts():
    module = _built(top_k=1, renormalise=False, balances=(RowLoss(coefficient=1.0),))
    module.router[...] = jnp.zeros((WIDTH, EXPERTS)).at[0, 2].set(100.0)
    assert _balance(module, np.abs(X) + 1) == pytest.approx(EXPERTS, rel=1e-6)


def test_one_expert_is_the_layer_times_a_gate_of_one():
    module = _built(experts=1, top_k=1, renormalise=False)
    layer = EXPERT.build(WIDTH, rngs=nnx.Rngs(0))
    for name in ("gate", "up", "down"):
        getattr(layer, name).set_dense(getattr(module.experts, name).kernel[...][0])
    assert_close(_out(module, X, WHOLE).y, _out(layer, X, WHOLE).y, CLOSED_FORM)


@pytest.mark.parametrize("selection", [TopK(), GroupLimited(groups=2, kept=1)], ids=repr)
def test_loads_sum_to_the_experts_of_all_real_tokens(selection):
    module = _built(selection=selection, dispatch=Capacity(factor=1.0), zero_experts=2 * (selection == TopK()))
    assert float(_out(module, X).sums.counts["load"].sum()) == 2 * (BATCH.segment_ids > 0).sum()


@pytest.mark.parametrize("dispatch", [Dropless(), Dropless(pieces=4), Capacity(factor=1.0), EveryExpert()], ids=repr)
def test_what_stands_in_padding_changes_nothing_bit_for_bit(dispatch):
    module = _built(dispatch=dispatch, balances=(*LOSSES, RouterBias(rate=0.1), LoadLoss(coefficient=1.0)))
    padding = BATCH.segment_ids[..., None] == 0
    assert padding.sum() > 3
    found, desired = _out(module, np.where(padding, np.float32(50) * X[::-1], X)), _out(module, X)
    assert_close(found.y, desired.y, EXACT)
    assert_close(found.sums, desired.sums, EXACT)
    assert not np.asarray(found.y)[padding[..., 0]].any()


def test_a_batch_twice_has_sums_twice_as_large():
    twice = context_of(jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), BATCH), None)
    module = _built(balances=(*LOSSES, LoadLoss(coefficient=1.0)), dispatch=Capacity(factor=1.0))
    once, both = _out(module, X).sums, _out(module, np.concatenate([X, X]), twice).sums
    assert_close(both.counts, jax.tree.map(lambda count: 2 * count, once.counts), EXACT)
    for name, term in once.terms.items():
        assert float(both.terms[name]) == pytest.approx(2 * float(term), rel=1e-5), name


def test_a_token_that_all_its_experts_drop_stays_as_it_was_in_the_stream():
    """Fedus et al. (2021), section 2.2: as many are dropped as an expert has tokens beyond its places."""
    block = BlockConfig(
        mixer=AttentionConfig(heads=2, kv_heads=2, head_dim=8),
        mlp=MixtureConfig(experts=EXPERTS, top_k=1, expert=EXPERT, renormalise=False, dispatch=Capacity(factor=1.0)),
    )
    model = DecoderConfig(vocab_size=64, d_model=WIDTH, repeats=1, pattern=(block,), max_length=12)
    module = block.build(WIDTH, norm=model.norm, dropout=0.0, rngs=nnx.Rngs(0))
    out = _out(module, X, WHOLE._replace(taps={"mlp_output": None}))
    counts = out.sums.counts["mlp"]
    dropped = ~np.asarray(out.taps["mlp_output"]).any(-1)
    assert dropped.sum() == float(counts["dropped"].sum()) > 3
    plain = dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, scale=1e-30))
    without = _out(plain.build(WIDTH, norm=model.norm, dropout=0.0, rngs=nnx.Rngs(0)), X, WHOLE)
    assert_close(np.asarray(out.y)[dropped], np.asarray(without.y)[dropped], EXACT)
    assert np.abs(np.asarray(out.y)[~dropped] - np.asarray(without.y)[~dropped]).max() > 1e-3


def test_parameters_and_flops_are_those_of_the_hand_formula():
    """64 experts, 8 of them a token, 2 shared ones, as in FLAME-MoE; and 8 of which one is active, as in Switch."""
    d, hidden, vocabulary, layers = 64, 32, 64, 3
    attention = AttentionConfig(heads=4, kv_heads=4, head_dim=16)

    def model(mlp) -> DecoderConfig:
        block = BlockConfig(mixer=attention, mlp=mlp)
        return DecoderConfig(vocab_size=vocabulary, d_model=d, repeats=layers, pattern=(block,), max_length=128)

    expert = GatedMLPConfig(hidden=hidden)
    flame = model(MixtureConfig(experts=64, top_k=8, expert=expert, shared=GatedMLPConfig(hidden=2 * hidden)))
    others = model(GatedMLPConfig(hidden=hidden)).parameter_count - layers * 3 * d * hidden
    assert flame.parameter_count == others + layers * (3 * d * hidden * (64 + 2) + d * 64)
    assert flame.active_parameter_count == others + layers * (3 * d * hidden * (8 + 2) + d * 64)
    dense, switch = model(expert), model(MixtureConfig(experts=8, top_k=1, expert=expert, renormalise=False))
    experts = switch.parameter_count - dense.parameter_count - layers * d * 8
    assert experts == 7 * layers * 3 * d * hidden
    assert dense.flops_per_token(128) <= switch.flops_per_token(128) <= 1.05 * dense.flops_per_token(128)
