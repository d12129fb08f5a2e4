"""Selections that read tokens or tasks, and dropout of experts by cluster."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import training_batch, variant
from tolerances import CLOSED_FORM_LAYER, EXACT, assert_close

from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.layer import Keys
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.nn.moe.dispatch import Dropless, EveryExpert
from jaxtrain.nn.moe.routers import Equal, Softmax
from jaxtrain.nn.moe.selections import BySkills, ClusterDropout, GroupLimited, Hash
from jaxtrain.nn.param import is_variable, merge, split

WIDTH, EXPERT = 16, GatedMLPConfig(hidden=24)
BATCH = training_batch(4, 12, vocab_size=64)
CONTEXT = context_of(BATCH, Keys(jax.random.split(jax.random.key(0), 4), jax.random.key(1)))
REAL = np.asarray(BATCH.segment_ids)[..., None] > 0
X = np.random.default_rng(0).standard_normal((4, 12, WIDTH)).astype(np.float32)
PLAIN = MixtureConfig(experts=4, top_k=2, expert=EXPERT, dispatch=EveryExpert())
SKILLS = dataclasses.replace(PLAIN, router=Equal(), selection=BySkills(skills=((0, 2), (1,))))


def _built(config: MixtureConfig) -> nnx.Module:
    return config.build(WIDTH, rngs=nnx.Rngs(0))


def _found(module, context=CONTEXT):
    graph, model = split(module)
    return jax.jit(lambda model: merge(graph, model)(X, context))(model)


def _each(module) -> np.ndarray:
    """Return what each expert makes of all tokens."""
    graph, arrays = split(module.experts)
    return np.asarray(jax.jit(jax.vmap(lambda own: merge(graph, own)(X, CONTEXT).y))(arrays))


def _gradient(module, context):
    graph, model = split(module)

    def loss(params):
        return jnp.sum(merge(graph, model._replace(params=params))(X, context).y ** 2)

    return jax.jit(jax.grad(loss))(model.params)


def _mixed(x: int) -> int:
    """The finalizer of MurmurHash3, in the integers of Python."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def test_a_hash_gives_a_token_the_same_experts_wherever_it_stands_and_all_experts_like_loads():
    tokens = np.tile(np.arange(4096, dtype=np.int32).reshape(2, 2048), (1, 2))
    context = CONTEXT._replace(tokens=tokens)
    chosen = np.asarray(Hash(seed=5)(jnp.zeros((2, 4096, 8)), 2, context))
    assert_close(chosen[:, :2048], chosen[:, 2048:], EXACT)
    assert (chosen.sum(-1) == 2).all()
    load = chosen[:, :2048].sum((0, 1))
    assert np.abs(load - 1024).max() < 100, load
    for token in (0, 1, 77, 2047):
        drawn = [_mixed(_mixed(_mixed(5) ^ token) ^ expert) for expert in range(8)]
        assert set(np.flatnonzero(chosen[0, token])) == set(np.argsort(drawn)[-2:])
    other = np.asarray(Hash(seed=6)(jnp.zeros((2, 4096, 8)), 2, context))
    assert 0.2 < (chosen * other).sum(-1).mean() / 2 < 0.3, "another table"


def test_a_balanced_hash_gives_all_experts_as_many_tokens_of_a_text():
    """Frequencies as in a text, 1/rank; each token takes the emptiest experts, the most frequent one first."""
    random, words = np.random.default_rng(0), 512
    counts = [(token, 10**6 // rank) for rank, token in enumerate(random.permutation(words).tolist(), 1)]
    load = np.zeros(4)
    desired = {}
    for token, count in counts:
        desired[token] = np.argsort(load, kind="stable")[:2]
        load[desired[token]] += count
    tokens = np.arange(2 * words, dtype=np.int32).reshape(2, words)
    context, scores = CONTEXT._replace(tokens=tokens), jnp.zeros((2, words, 4))
    balanced = np.asarray(Hash(counts=tuple(counts[:256][::-1]))(scores, 2, context))
    plain = np.asarray(Hash()(scores, 2, context))
    for token, _ in counts[:256]:
        assert_close(np.flatnonzero(balanced[0, token]), np.sort(desired[token]), EXACT)
    rare = [token for token, _ in counts[256:]]
    assert_close(balanced[0, rare], plain[0, rare], EXACT)
    assert_close(balanced[1], plain[1], EXACT)  # behind the last token that is counted
    often = np.array([count for _, count in sorted(counts)])
    loads = [(chosen[0] * often[:, None]).sum(0) for chosen in (balanced, plain)]
    fullest = [load.max() / load.mean() for load in loads]
    assert fullest[0] < 1.05 < 1.1 < fullest[1]


def test_the_experts_of_a_hash_are_averaged_and_read_by_no_bias():
    module = _built(dataclasses.replace(SKILLS, selection=Hash()))
    assert not {"router", "bias"} & nnx.state(module).keys()
    chosen = np.asarray(module.routing(module.scores(X, CONTEXT), CONTEXT).chosen)
    assert_close(_found(module).y, np.einsum("EBLD,BLE->BLD", _each(module), chosen) / 2, CLOSED_FORM_LAYER)
    with refused(ValueError, "RouterBias(rate=0.1)", "Hash(seed=0, counts=())"):
        dataclasses.replace(SKILLS, selection=Hash(), balances=(RouterBias(rate=0.1),))


def test_the_skills_of_a_task_are_averaged_and_those_of_others_have_no_gradient():
    """Rows 0 and 2 are of task 0, with skills 0 and 2; rows 1 and 3 of task 1, with skill 1."""
    module = _built(SKILLS)
    outputs = _each(module)
    of_first = np.asarray(BATCH.tasks)[..., None] == 0
    desired = np.where(of_first, (outputs[0] + outputs[2]) / 2, outputs[1]) * REAL
    assert_close(_found(module).y, desired, CLOSED_FORM_LAYER)
    gradient = _gradient(module, CONTEXT._replace(tasks=np.zeros((4, 12), np.int32)))
    for leaf in jax.tree.leaves(gradient):
        assert not np.asarray(leaf)[[1, 3]].any() and np.asarray(leaf)[[0, 2]].any()


def test_skills_that_share_their_weights_are_one_layer():
    module = _built(SKILLS)
    for leaf in jax.tree.leaves(nnx.state(module.experts), is_leaf=is_variable):
        leaf[...] = jnp.broadcast_to(leaf[...][:1], leaf[...].shape)
    assert_close(_found(module).y, _each(module)[0] * REAL, CLOSED_FORM_LAYER)


def test_a_skill_that_is_appended_leaves_other_tasks_as_they_were_bit_for_bit():
    before = _built(dataclasses.replace(SKILLS, dispatch=Dropless()))
    after = _built(dataclasses.replace(before.config, experts=5, selection=BySkills(skills=((0, 2), (1,), (1, 4)))))
    for name in ("gate", "up", "down"):
        kernel, old = getattr(after.experts, name).kernel, getattr(before.experts, name).kernel
        kernel[...] = kernel[...].at[:4].set(old[...])
    assert_close(_found(after).y, _found(before).y, EXACT)


def test_a_token_takes_the_flops_of_its_own_skills():
    def multiplied(**changes) -> float:
        block = dataclasses.replace(variant().pattern[0], mlp=dataclasses.replace(SKILLS, **changes))
        return variant(pattern=(block,)).flops_per_token(8)

    of_all = multiplied(top_k=4, selection=BySkills(skills=((0, 1, 2, 3),)))
    of_none = variant(pattern=(dataclasses.replace(variant().pattern[0], mlp=GatedMLPConfig(hidden=1)),))
    rest = of_none.flops_per_token(8) - 2 * 6 * 3 * 32
    assert multiplied() - rest == (of_all - rest) / 2


def test_clusters_of_one_expert_without_dropout_are_the_plain_mixture():
    clusters = dataclasses.replace(PLAIN, selection=ClusterDropout(clusters=4, rate=0.0))
    assert_close(_found(_built(clusters)).y, _found(_built(PLAIN)).y, EXACT)


def test_experts_that_a_step_drops_have_no_token_and_no_gradient_and_each_cluster_keeps_some():
    config = dataclasses.replace(PLAIN, experts=6, selection=ClusterDropout(clusters=2, rate=0.5))
    module, dropped = _built(config), set()
    for step in range(4):
        keys = Keys(CONTEXT.keys.rows, jax.random.key(step))
        chosen = config.selection(jnp.ones((1, 1, 6)), 4, CONTEXT._replace(keys=keys))[0, 0]  # all that are left
        kept = np.flatnonzero(chosen)
        assert len(kept) == 4 and (kept < 3).sum() == 2, "one of three of each cluster is dropped"
        dropped.add(tuple(kept))
    out = np.setdiff1d(np.arange(6), kept)
    assert len(dropped) > 1, "other ones in other steps"
    assert not np.asarray(_found(module, CONTEXT._replace(keys=keys)).sums.counts["load"])[out].any()
    for leaf in jax.tree.leaves(_gradient(module, CONTEXT._replace(keys=keys))["experts"]):
        assert not np.asarray(leaf)[out].any()
    many = ClusterDropout(clusters=1, rate=0.29)(jnp.ones((1, 1, 100)), 71, CONTEXT)
    assert many.sum() == 71, "29 of 100, though 100 * 0.29 is 28.999999999999996"
    assert config.selection(jnp.ones((1, 1, 6)), 6, CONTEXT._replace(keys=None)).all(), "only in training"


@pytest.mark.parametrize("selection", [ClusterDropout(clusters=2, rate=0.5), GroupLimited(groups=2, kept=1)], ids=repr)
def test_experts_that_a_step_or_a_group_leaves_out_have_no_token_though_no_other_was_found(selection):
    """A router found the first expert alone, as a beam search may; of the others every score is -inf."""
    scores = jnp.full((1, 2, 4), -jnp.inf).at[..., 0].set(0.5)
    for step in range(8):
        keys = Keys(CONTEXT.keys.rows, jax.random.key(step))
        chosen = np.asarray(selection(scores, 2, CONTEXT._replace(keys=keys)))[0, 0]
        allowed = np.asarray(selection(jnp.ones((1, 1, 4)), 2, CONTEXT._replace(keys=keys)))[0, 0]
        assert not (chosen > allowed).any()


def test_groups_come_first_of_which_a_router_found_more():
    """Of three groups of three, judged by two, the last has two experts that were found, and the first one."""
    scores = jnp.full((1, 1, 9), -jnp.inf).at[0, 0, jnp.array([0, 6, 8])].set(jnp.array([0.9, 0.1, 0.2]))
    chosen = GroupLimited(groups=3, kept=1)(scores, 2, CONTEXT)
    assert np.flatnonzero(chosen[0, 0]).tolist() == [6, 8]


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"selection": BySkills(skills=((0, 4), (1,)))}, ("skills[0]=(0, 4)", 3)),
        ({"top_k": 3}, ("top_k=3", "top_k=2")),
        ({"selection": ClusterDropout(clusters=3, rate=0.0), "router": Softmax()}, ("clusters=3", 4)),
        ({"selection": ClusterDropout(clusters=2, rate=0.1), "router": Softmax()}, ("rate=0.1", "0")),
        ({"selection": ClusterDropout(clusters=1, rate=0.75), "router": Softmax()}, ("top_k=2", "rate=0.75", "1")),
    ],
    ids=str,
)
def test_selections_that_do_not_fit_are_refused(changes, facts):
    with refused(ValueError, *facts):
        dataclasses.replace(SKILLS, **changes)


@pytest.mark.parametrize(
    ("selection", "changes", "facts"),
    [
        (Hash, {"seed": -1}, ("seed=-1",)),
        (Hash, {"counts": ((3, 5), (4, 0))}, ("counts[1]=(4, 0)",)),
        (Hash, {"counts": ((3, 5), (3, 2))}, ("counts", 2)),
        (BySkills, {"skills": ()}, ("skills=()",)),
        (BySkills, {"skills": ((0, 0),)}, ("skills[0]=(0, 0)",)),
        (ClusterDropout, {"clusters": 0, "rate": 0.5}, ("clusters=0",)),
        (ClusterDropout, {"clusters": 2, "rate": 1.0}, ("rate=1.0",)),
    ],
    ids=str,
)
def test_numbers_of_selections_that_mean_nothing_are_refused(selection, changes, facts):
    with refused(ValueError, *facts):
        selection(**changes)
