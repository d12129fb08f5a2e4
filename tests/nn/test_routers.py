"""Routers beside softmax and sigmoid: by task, by product keys, and with noise on what they read."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import training_batch, variant
from tolerances import CLOSED_FORM, EXACT, SAME_SUMS, assert_close

from jaxtrain.cli.config_types import subclasses
from jaxtrain.models.decoder import context_of
from jaxtrain.nn.depth import Depth, ExpertChoiceRecursion, MixtureOfDepths, TokenChoiceRecursion
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.layer import Keys, Out
from jaxtrain.nn.moe.dispatch import EveryExpert
from jaxtrain.nn.moe.routers import (
    ByTask,
    Equal,
    Fixed,
    InputDropout,
    Jitter,
    ProductKeys,
    Router,
    Sigmoid,
    Softmax,
    Stable,
)
from jaxtrain.nn.moe.routers.product_keys import beam_search
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.nn.param import merge, split

WIDTH = 16
BATCH = training_batch(4, 12, vocab_size=64)
CONTEXT = context_of(BATCH, Keys(jax.random.split(jax.random.key(0), 4), jax.random.key(1)))
X = np.random.default_rng(0).standard_normal((4, 12, WIDTH)).astype(np.float32)
EXPERT = GatedMLPConfig(hidden=24)
MIXTURE = MixtureConfig(experts=4, top_k=2, expert=EXPERT, router=ByTask(tasks=3), dispatch=EveryExpert())


@dataclasses.dataclass(frozen=True)
class Probe(Router):
    """What it reads, as scores."""

    def __call__(self, x, context, own):
        return Scores(x, x)


def test_all_tokens_of_a_task_have_the_same_experts_and_its_row_alone_has_their_gradient():
    """Each row of the batch is of one task, 0 or 1; the third task has no token."""
    module = MIXTURE.build(WIDTH, rngs=nnx.Rngs(0))
    real, tasks = np.asarray(BATCH.segment_ids) > 0, np.asarray(BATCH.tasks)
    chosen = np.asarray(module.routing(module.scores(X, CONTEXT), CONTEXT).chosen)
    best = np.argsort(-np.asarray(module.of_tasks[...]), axis=1)[:, :2]
    for task in (0, 1):
        assert set(map(tuple, chosen[real & (tasks == task)])) == {tuple(np.isin(np.arange(4), best[task]) * 1.0)}

    graph, model = split(module)

    @jax.jit
    @jax.vmap
    def gradient_of(segment_ids):
        def loss(params):
            own = merge(graph, model._replace(params=params))
            return jnp.sum(own(X, CONTEXT._replace(segment_ids=segment_ids)).y ** 2)

        return jax.grad(loss)(model.params)["of_tasks"]

    places = np.stack(np.nonzero(real), axis=1)
    alone = np.zeros((len(places), 4, 12), np.int32)
    alone[np.arange(len(places)), *places.T] = 1
    whole, of_tokens = np.split(np.asarray(gradient_of(np.concatenate([real[None] * 1, alone]))), [1])
    of_token = tasks[*places.T]
    assert_close(whole[0], np.stack([of_tokens[of_token == t].sum(0)[t] for t in range(3)]), SAME_SUMS)
    assert not whole[0, 2].any() and whole[0, :2].any(axis=1).all()
    assert not of_tokens[of_token == 0][:, 1:].any()


def test_a_batch_without_tasks_and_a_prompt_are_refused():
    with refused(ValueError, "ByTask(tasks=3)", "Batch.tasks"):
        MIXTURE.build(WIDTH, rngs=nnx.Rngs(0))(X, CONTEXT._replace(tasks=None))
    with refused(ValueError, "ByTask(tasks=3)", "--task"):
        MIXTURE.check_decoding()


@pytest.mark.parametrize("grid", [(8, 8, 8), (5, 7)], ids=str)
def test_a_beam_of_top_k_finds_the_greatest_sums_of_a_full_grid(grid):
    random = np.random.default_rng(2)
    keys = [random.standard_normal((16, size)).astype(np.float32) for size in grid]
    cells, there = beam_search(keys, np.ones(np.prod(grid), bool), 4)
    sums = np.stack([sum(axis[:, i] for axis, i in zip(keys, cell, strict=True)) for cell in np.ndindex(grid)], axis=1)
    np.testing.assert_array_equal(cells, np.argsort(-sums, axis=1)[:, :4])
    assert there.all()


def test_a_beam_search_over_a_grid_with_holes_finds_living_experts_alone():
    """Of nine cells in ten that are holes some prefixes lead nowhere; with a beam of all cells it is exact."""
    random, grid = np.random.default_rng(3), (8, 8, 8)
    alive = random.random(512) < 0.1
    keys = [random.standard_normal((16, size)).astype(np.float32) for size in grid]
    cells, there = map(np.asarray, beam_search(keys, alive, 4))
    assert alive[cells[there]].all() and there[:, 0].all()
    every, there = map(np.asarray, beam_search(keys, alive, 512))
    sums = np.stack([sum(axis[:, i] for axis, i in zip(keys, cell, strict=True)) for cell in np.ndindex(grid)], axis=1)
    desired = np.argsort(np.where(alive, -sums, np.inf), axis=1)[:, : alive.sum()]
    np.testing.assert_array_equal(every[:, : alive.sum()], desired)
    np.testing.assert_array_equal(there.sum(1), alive.sum())


def test_product_keys_weigh_experts_by_the_softmax_of_sums_over_the_cells_that_are_no_holes():
    router = ProductKeys(grid=(3, 2, 2), holes=(1, 4, 9, 11))
    config = dataclasses.replace(MIXTURE, experts=8, router=router)
    module = config.build(WIDTH, rngs=nnx.Rngs(0))
    keys = X.astype(np.float64) @ np.asarray(module.router[...], np.float64)
    cells = [cell for n, cell in enumerate(itertools.product(range(3), range(2), range(2))) if n not in router.holes]
    logits = np.stack([keys[..., a] + keys[..., 3 + b] + keys[..., 5 + c] for a, b, c in cells], axis=-1)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert_close(module.scores(X, CONTEXT).weights, weights.astype(np.float32), CLOSED_FORM)
    searched = dataclasses.replace(config, router=dataclasses.replace(router, beam=2))
    searched = searched.build(WIDTH, rngs=nnx.Rngs(0))
    scores = searched.scores(X, CONTEXT)
    np.testing.assert_array_equal((np.asarray(scores.chosen_by) > -np.inf).sum(-1), 2)
    chosen = searched.routing(scores, CONTEXT).chosen
    np.testing.assert_array_equal(chosen.sum(-1), 2 * (np.asarray(BATCH.segment_ids) > 0))


BUILT = {
    "router": (
        Softmax(bias=True),
        Sigmoid(),
        ByTask(tasks=2),
        ProductKeys(grid=(2, 2), beam=2),
        Stable(vocab_size=64, switch_step=2),
        Jitter(router=InputDropout()),
    ),
    "depth": (
        MixtureOfDepths(capacity=0.5, predictor=4),
        ExpertChoiceRecursion(capacities=(1.0, 0.5)),
        TokenChoiceRecursion(times=2),
    ),
}


@pytest.mark.parametrize("router", (*BUILT["router"], *BUILT["depth"]), ids=lambda router: type(router).__name__)
def test_no_product_of_a_router_is_rounded_on_matrix_units(router):
    """In the program of a model in bfloat16: by default TPUs would multiply in bfloat16, and GPUs in TF32."""
    sizes = () if router in BUILT["depth"] else (4,)
    own = router.build(WIDTH, *sizes, rngs=nnx.Rngs(0))

    def called(x):
        if sizes:
            return router(x, CONTEXT, own)
        return router(lambda few, context, state: Out(2 * few), x, CONTEXT, None, own)

    text = jax.jit(called).lower(jnp.asarray(X, jnp.bfloat16)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    for product in products:
        assert "precision = [HIGHEST, HIGHEST]" in product and "bf16" not in product


def test_every_router_with_parameters_is_among_them():
    names = {name for kind in BUILT.values() for router in kind for name in re.findall(r"(\w+)\(", repr(router))}
    for base, without in ((Router, {"Equal", "Fixed"}), (Depth, set())):
        found = {name for name, cls in subclasses(base).items() if cls.__module__.startswith("jaxtrain.")}
        assert found - without <= names


def test_jitter_multiplies_what_the_router_reads_within_its_bounds_and_in_training_alone():
    noisy = Jitter(epsilon=0.25, router=Probe())
    noise = np.asarray(noisy(X, CONTEXT, {}).weights) / X
    assert 0.75 <= noise.min() < 0.8 and 1.2 < noise.max() <= 1.25 and abs(noise.mean() - 1) < 0.02
    assert np.unique(noise[:, 0, 0].round(4)).size == 4, "each row has its own"
    other = CONTEXT._replace(keys=Keys(CONTEXT.keys.rows[::-1], CONTEXT.keys.step))
    assert_close(noisy(X[::-1], other, {}).weights, noisy(X, CONTEXT, {}).weights[::-1], EXACT)
    assert_close(noisy(X, CONTEXT._replace(keys=None), {}).weights, X, EXACT)


def test_dropout_of_the_input_leaves_out_a_share_of_what_the_router_reads():
    found = np.asarray(InputDropout(rate=0.25, router=Probe())(X, CONTEXT, {}).weights)
    assert abs((found == 0).mean() - 0.25) < 0.04
    assert_close(found[found != 0], (X / np.float32(0.75))[found != 0], CLOSED_FORM)
    assert_close(InputDropout(router=Probe())(X, CONTEXT._replace(keys=None), {}).weights, X, EXACT)


def test_a_wrapper_has_the_tasks_the_parameters_and_the_rules_of_the_router_in_it():
    for wrap in (Jitter, InputDropout):
        wrapped = dataclasses.replace(MIXTURE, router=wrap(router=ByTask(tasks=3)))
        assert wrapped.task_count == 3 and "of_tasks" in nnx.state(wrapped.build(WIDTH, rngs=nnx.Rngs(0)))
        stable = wrap(router=Stable(vocab_size=64, switch_step=2))
        assert not stable.takes_bias
        block = dataclasses.replace(variant().pattern[0], mlp=dataclasses.replace(MIXTURE, router=stable))
        for blocks in ({"pattern": (block,)}, {"first": (block,)}):
            with refused(ValueError, "vocab_size=64", "vocab_size=65"):
                variant(**blocks, vocab_size=65)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"router": Equal()}, ("router=Equal()", "@Hash()")),
        ({"router": Fixed()}, ("router=Fixed()", "@Hash()")),
        ({"router": ProductKeys(grid=(2, 3))}, ("grid=(2, 3)", 6, 4)),
        ({"router": Jitter(router=ProductKeys(grid=(2, 2), beam=1))}, ("beam=1", "top_k=2")),
    ],
    ids=str,
)
def test_routers_that_do_not_fit_are_refused(changes, facts):
    with refused(ValueError, *facts):
        dataclasses.replace(MIXTURE, **changes)


@pytest.mark.parametrize(
    ("router", "changes", "facts"),
    [
        (ByTask, {"tasks": 0}, ("tasks=0",)),
        (Jitter, {"epsilon": 1.0}, ("epsilon=1.0",)),
        (InputDropout, {"rate": 0.0}, ("rate=0.0",)),
        (ProductKeys, {"grid": ()}, ("grid=()",)),
        (ProductKeys, {"grid": (2, 2), "holes": (4,)}, ("holes=(4,)", 3)),
        (ProductKeys, {"grid": (2, 2), "beam": 0}, ("beam=0",)),
        (Stable, {"vocab_size": 64, "switch_step": 0}, ("switch_step=0",)),
    ],
    ids=str,
)
def test_numbers_of_routers_that_mean_nothing_are_refused(router, changes, facts):
    with refused(ValueError, *facts):
        router(**changes)
