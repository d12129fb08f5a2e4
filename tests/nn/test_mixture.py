"""A mixture is the weighed sum that it is said to be, and balances by its losses and its bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import CountedConfig
from flax import nnx
from messages import refused
from tiny import training_batch
from tolerances import CLOSED_FORM, EXACT, SAME_SUMS, assert_close

from jaxtrain.models.decoder import DecoderConfig, context_of
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward import mixture
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.feed_forward.sigmoid_gated import SigmoidGatedConfig
from jaxtrain.nn.heads import TiedHead
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.moe.balances import LoadLoss, RouterBias, RowLoss, TargetBias, ZLoss
from jaxtrain.nn.moe.routers import Equal, Sigmoid, Softmax
from jaxtrain.nn.moe.selections import ExpertChoice, GroupLimited, Hash
from jaxtrain.nn.param import is_variable, merge, split
from jaxtrain.train.routed import numbers

EXPERT, WIDTH, EXPERTS = GatedMLPConfig(hidden=24), 16, 4
BATCH = training_batch(3, 12, vocab_size=64)
CONTEXT = context_of(BATCH, None)
X = np.random.default_rng(0).standard_normal((3, 12, WIDTH)).astype(np.float32)


def _config(**changes) -> MixtureConfig:
    return MixtureConfig(**{"experts": EXPERTS, "top_k": 2, "expert": EXPERT} | changes)


def _built(**changes) -> nnx.Module:
    return _config(**changes).build(WIDTH, rngs=nnx.Rngs(0))


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
    for place in zip(*np.nonzero(BATCH.segment_ids), strict=True):
        best = np.argsort(-probabilities[place])[:top_k]
        total = probabilities[place][best].sum() if renormalise else 1.0
        desired[place] = sum(probabilities[place][e] / total * _expert(module, e, X[place]) for e in best)
    assert_close(module(X, CONTEXT).y, desired.astype(np.float32), CLOSED_FORM)


def test_the_balance_loss_is_that_of_each_row_over_real_tokens():
    module = _built(balances=(RowLoss(coefficient=0.5),))
    probabilities, desired = _probabilities(module), 0.0
    for row in range(3):
        own = probabilities[row][BATCH.segment_ids[row] > 0]
        chosen = np.argsort(-own, axis=-1)[:, :2]
        share = np.bincount(chosen.reshape(-1), minlength=EXPERTS) * EXPERTS / (2 * len(own))
        desired += 0.5 * len(own) * (share * own.mean(0)).sum()
    assert float(module(X, CONTEXT).sums.terms["balance"]) == pytest.approx(desired, rel=1e-5)


def test_a_balanced_mixture_has_a_balance_loss_of_its_coefficient():
    module = _built(experts=2, top_k=1, balances=(RowLoss(coefficient=0.5),))
    module.router[...] = jnp.zeros_like(module.router[...]).at[0].set(jnp.array([1e-6, -1e-6]))
    x = np.array(X)
    x[:, :, 0] = np.where(np.arange(12) % 2, 1.0, -1.0)
    whole = CONTEXT._replace(segment_ids=np.ones((3, 12), np.int32))
    assert float(module(x, whole).sums.terms["balance"]) / 36 == pytest.approx(0.5, rel=1e-5)


def test_the_bias_changes_the_choice_and_not_the_weights():
    module = _built(balances=(RouterBias(rate=0.1),), top_k=EXPERTS)
    before = module(X, CONTEXT).y
    module.bias[...] = jnp.array([5.0, -5.0, 0.0, 0.0])
    assert_close(module(X, CONTEXT).y, before, SAME_SUMS)
    module = _built(balances=(RouterBias(rate=0.1),), top_k=1)
    module.bias[...] = jnp.array([5.0, -5.0, 0.0, 0.0])
    load = module(X, CONTEXT).sums.counts["load"]
    assert_close(load, np.array([(BATCH.segment_ids > 0).sum(), 0, 0, 0], np.float32), EXACT)


def test_a_step_moves_the_bias_towards_the_experts_that_had_less_than_the_mean():
    module = _built(balances=(RouterBias(rate=0.1),))
    module.update_buffers({"load": jnp.array([3.0, 9.0, 6.0, 6.0])})
    assert_close(module.bias[...], np.array([0.1, -0.1, 0.0, 0.0], np.float32), CLOSED_FORM)


def test_a_step_shows_the_fullest_expert_of_all_layers_and_the_greatest_share_that_was_dropped():
    block = BlockConfig(mixer=AttentionConfig(heads=2, kv_heads=2, head_dim=8), mlp=_config())
    model = DecoderConfig(vocab_size=64, d_model=WIDTH, repeats=2, pattern=(block,) * 2, max_length=12)
    load = jnp.array(
        [[[4.0, 4, 4, 4], [1, 2, 3, 10]], [[0, 0, 8, 8], [4, 4, 4, 4]]]
    )  # by layer of a pattern, by repeat
    dropped = load * jnp.array([[0.0, 0.0], [0.25, 0.5]])[..., None]
    counts = {str(i): {"mlp": {"load": load[i], "dropped": dropped[i]}} for i in range(2)}
    found = nnx.eval_shape(lambda: model.build(jax.random.key(0))).reported({"blocks": counts})
    assert found == {"fullest_expert": 2.5, "dropped": 0.5}


def test_zero_experts_have_no_part_in_how_full_the_fullest_is():
    counts = {"load": jnp.array([4.0, 4.0, 4.0, 4.0, 16.0]), "dropped": jnp.zeros(4)}
    assert float(_built(zero_experts=1).report(counts)["fullest_expert"]) == 1
    asked = {name: np.zeros(()) for name in ("tokens", "entropy", "moved")}
    own = {**jax.tree.map(np.asarray, counts), **asked, "together": np.zeros((5, 5))}
    assert numbers({"0": own})["validation_fullest_expert_0"] == 1


def test_more_experts_a_token_than_there_are_is_refused():
    with refused(ValueError, "top_k=5", "experts=4"):
        _built(top_k=5)


@pytest.mark.parametrize("balance", [RouterBias(rate=0.1), RowLoss(coefficient=0.1)], ids=repr)
def test_one_expert_whose_weight_is_always_one_is_said_to_teach_the_router_nothing(balance, caplog):
    """With a bias alone, the router and its trained bias have no gradient; with a loss they have that of the loss."""
    mixture._warn_of_constant_weights.cache_clear()
    changes = {"top_k": 1, "balances": (balance,), "router": Softmax(bias=True)}
    _built(**changes, renormalise=False)
    assert not caplog.records
    graph, model = split(_built(**changes))
    assert "top_k=1" in caplog.text and "renormalise" in caplog.text
    taught = isinstance(balance, RowLoss)
    assert ("balances alone" in caplog.text) == taught and ("none at all" in caplog.text) != taught

    def loss(params):
        out = merge(graph, model._replace(params=params))(X, CONTEXT)
        return jnp.sum(out.y**2) + sum(out.sums.terms.values())

    gradient = jax.jit(jax.grad(loss))(model.params)
    for name in ("router", "router_bias"):
        assert (np.abs(gradient[name]).max() > 1e-3) == taught


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"selection": ExpertChoice(), "balances": (RouterBias(rate=0.1),)}, "RouterBias(rate=0.1)"),
        ({"selection": ExpertChoice(), "balances": (LoadLoss(coefficient=0.1),)}, "LoadLoss(coefficient=0.1)"),
        ({"selection": Hash(), "balances": (RowLoss(coefficient=0.1),)}, "RowLoss(coefficient=0.1)"),
        ({"router": Equal(), "selection": Hash(), "balances": (ZLoss(coefficient=0.1),)}, "Equal()"),
        ({"balances": (LoadLoss(coefficient=0.1), LoadLoss(coefficient=0.2))}, "LoadLoss(coefficient=0.2)"),
        (
            {"zero_experts": 1, "balances": (RouterBias(rate=0.1), TargetBias(rate=0.1, per_token=1.5))},
            "TargetBias(rate=0.1, per_token=1.5)",
        ),
    ],
    ids=str,
)
def test_balances_that_could_change_nothing_or_stand_twice_are_refused(changes, fact):
    with refused(ValueError, "balances", fact):
        _built(**changes)


def test_a_shared_layer_with_buffers_or_sums_is_refused():
    with refused(ValueError, "shared=", "threshold"):
        _built(shared=CountedConfig(hidden=8))
    with refused(ValueError, "shared", "load"):
        _built(shared=_config())(X, CONTEXT)


def test_a_gated_mixture_moves_its_bias_and_shows_its_loads():
    module = SigmoidGatedConfig(layer=_config(balances=(RouterBias(rate=0.1),))).build(WIDTH, rngs=nnx.Rngs(0))
    counts = module(X, CONTEXT).sums.counts
    module.update_buffers(counts)
    assert np.abs(module.layer.bias[...]).max() == np.float32(0.1)
    assert module.report(counts)["fullest_expert"] >= 1


def test_an_expert_with_a_buffer_is_refused():
    with refused(ValueError, "expert=CountedConfig(hidden=8", "threshold"):
        _built(expert=CountedConfig(hidden=8))


def test_the_loss_by_loads_is_a_sum_over_tokens_with_the_shares_of_the_step_before():
    module = _built(balances=(LoadLoss(coefficient=0.5),))
    module.update_buffers({"load": jnp.array([3.0, 9.0, 6.0, 6.0])})
    own = _probabilities(module)[BATCH.segment_ids > 0]
    desired = 0.5 * (own @ np.array([0.5, 1.5, 1.0, 1.0])).sum()
    assert float(module(X, CONTEXT).sums.terms["balance"]) == pytest.approx(desired, rel=1e-5)


def test_the_z_loss_is_the_square_of_the_logarithm_of_the_partition_function():
    module = _built(balances=(ZLoss(coefficient=0.5), RowLoss(coefficient=0.1)))
    logits = (X.astype(np.float64) @ np.asarray(module.router[...], np.float64))[BATCH.segment_ids > 0]
    terms = module(X, CONTEXT).sums.terms
    assert float(terms["router_z"]) == pytest.approx(0.5 * (np.log(np.exp(logits).sum(-1)) ** 2).sum(), rel=1e-5)
    assert sorted(terms) == ["balance", "router_z"]


def test_the_losses_of_two_balances_of_one_name_are_added():
    def loss(*balances) -> float:
        return float(_built(balances=balances)(X, CONTEXT).sums.terms["balance"])

    row, load = RowLoss(coefficient=0.5), LoadLoss(coefficient=1.0)
    assert loss(row, load) == pytest.approx(loss(row) + loss(load), rel=1e-6)


def test_groups_limit_the_experts_to_those_of_the_best_groups():
    """Of eight experts in four groups, against loops over the sums of two scores, with a bias and sigmoid weights."""
    selection = GroupLimited(groups=4, kept=2)
    changes = {"experts": 8, "top_k": 3, "selection": selection, "router": Sigmoid(), "scale": 2.5}
    module = _built(**changes, balances=(RouterBias(rate=0.1),))
    module.bias[...] = bias = np.linspace(-0.3, 0.3, 8).astype(np.float32)
    weights = 1 / (1 + np.exp(-X.astype(np.float64) @ np.asarray(module.router[...], np.float64)))
    desired = np.zeros(X.shape)
    for place in zip(*np.nonzero(BATCH.segment_ids), strict=True):
        judged = (weights[place] + bias).reshape(4, 2)
        kept = np.argsort(-judged.sum(-1))[:2]
        allowed = np.full((4, 2), -np.inf)
        allowed[kept] = judged[kept]
        best = np.argsort(-allowed.reshape(-1))[:3]
        assert set(best // 2) == set(kept)
        total = weights[place][best].sum() / 2.5
        desired[place] = sum(weights[place][e] / total * _expert(module, e, X[place]) for e in best)
    assert_close(module(X, CONTEXT).y, desired.astype(np.float32), CLOSED_FORM)


def test_experts_that_choose_have_the_same_load_and_refuse_to_generate():
    """64 tokens, 8 experts, 2 experts a token: 16 tokens an expert (arXiv:2202.09368, section 3.1)."""
    x = np.random.default_rng(1).standard_normal((1, 64, WIDTH)).astype(np.float32)
    context = context_of(training_batch(1, 64, vocab_size=64), None)
    context = context._replace(segment_ids=np.ones((1, 64), np.int32))
    module = _built(experts=8, selection=ExpertChoice())
    assert_close(module(x, context).sums.counts["load"], np.full(8, 16, np.float32), EXACT)
    with refused(ValueError, "ExpertChoice()", "generate"):
        module(x, context._replace(cache_index=jnp.int32(0)))


def test_a_zero_expert_gives_the_token_back_and_a_shared_layer_has_every_token():
    module = _built(zero_experts=1, top_k=1, balances=(RouterBias(rate=0.1),))
    module.bias[...] = jnp.array([0.0, 0.0, 0.0, 0.0, 5.0])
    real = BATCH.segment_ids[..., None] > 0
    assert_close(module(X, CONTEXT).y, X * real, CLOSED_FORM)
    shared = _built(zero_experts=1, top_k=1, balances=(RouterBias(rate=0.1),), shared=EXPERT)
    shared.bias[...] = module.bias[...]
    alone = shared.shared(X, CONTEXT).y
    assert_close(shared(X, CONTEXT).y, np.asarray(alone) + X * real, CLOSED_FORM)


@pytest.mark.parametrize("router", [Softmax(), Sigmoid()], ids=repr)
def test_identical_experts_are_one_layer(router):
    module = _built(router=router)
    for leaf in jax.tree.leaves(nnx.state(module.experts), is_leaf=is_variable):
        leaf[...] = jnp.broadcast_to(leaf[...][:1], leaf[...].shape)
    one = np.stack([_expert(module, 0, X[b]) for b in range(3)]) * (BATCH.segment_ids[..., None] > 0)
    assert_close(module(X, CONTEXT).y, one.astype(np.float32), CLOSED_FORM)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"selection": GroupLimited(groups=3, kept=1)}, ("groups=3", 4)),
        ({"selection": GroupLimited(groups=4, kept=1)}, ("judged_by=2", 4)),
        ({"selection": GroupLimited(groups=2, kept=1), "top_k": 3}, ("top_k=3", "kept=1")),
        ({"zero_experts": -1}, ("zero_experts=-1",)),
        ({"scale": 0.0}, ("scale=0.0",)),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(changes, facts):
    with refused(ValueError, *facts):
        _built(**changes)


@pytest.mark.parametrize(("d_model", "low", "high", "billions"), [(1024, 32, 64, 4), (2048, 64, 128, 31)])
def test_a_pyramid_of_residual_mixtures_has_the_published_number_of_parameters(d_model, low, high, billions):
    """Rajbhandari et al. (2022), arXiv:2201.05596, table 6: every second of 24 blocks, and the last two have more."""
    dense = MLPConfig(hidden=4 * d_model)
    heads = AttentionConfig(heads=d_model // 64, kv_heads=d_model // 64, head_dim=64)

    def blocks(experts: int) -> tuple[BlockConfig, ...]:
        residual = MixtureConfig(experts=experts, top_k=1, renormalise=False, expert=dense, shared=dense)
        return tuple(BlockConfig(mixer=heads, mlp=mlp) for mlp in (dense, residual))

    pattern = blocks(low) * 10 + blocks(high) * 2
    model = DecoderConfig(
        vocab_size=50_257, d_model=d_model, repeats=1, pattern=pattern, max_length=2048, head=TiedHead()
    )
    layer, experts = 8 * d_model**2, 10 * low + 2 * high
    closed = 50_257 * d_model + d_model + 24 * (4 * d_model**2 + layer + 2 * d_model) + experts * (layer + d_model)
    assert model.parameter_count == closed and round(closed / 1e9) == billions
    active = closed - experts * layer + 12 * layer
    assert model.active_parameter_count == active  # one expert of each mixture
