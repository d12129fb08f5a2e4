"""A pattern is any order of layers, and the search for one finds the best."""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused
from tiny import random_model, training_batch
from tolerances import EXACT, SAME_GRADIENT, SAME_LOGITS, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.models.orders import pattern_of
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.no_feed_forward import NoFeedForward
from jaxtrain.nn.joins import MixerAlone
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.moe.dispatch import Capacity
from jaxtrain.nn.param import merge
from jaxtrain.planning.order_search import best_order

D, L, EXPERTS = 16, 12, 4
MIXTURE = MixtureConfig(
    experts=EXPERTS, top_k=1, renormalise=False, expert=GatedMLPConfig(hidden=8), dispatch=Capacity(factor=1.0)
)
LAYERS = {"A": AttentionConfig(heads=2, kv_heads=1, head_dim=8), "D": GatedMLPConfig(hidden=24), "M": MIXTURE}
BATCH = training_batch(2, L, vocab_size=32)


def _model(*pattern: BlockConfig, **changes) -> DecoderConfig:
    return DecoderConfig(vocab_size=32, d_model=D, repeats=2, pattern=pattern, max_length=L, **changes)


def _logits(config: DecoderConfig, state):
    graph = abstract_model(config).graph
    return jax.jit(lambda state: merge(graph, state)(BATCH))(state)


def test_attention_and_a_dense_layer_are_the_usual_block_bit_for_bit():
    usual, apart = _model(BlockConfig(mixer=LAYERS["A"], mlp=LAYERS["D"])), _model(*pattern_of("AD", LAYERS))
    state = random_model(usual)
    (block,) = state.params["stacks"]["blocks"]["blocks"].values()
    halves = {
        0: {name: block[name] for name in ("mixer", "mixer_norm")},
        1: {name: block[name] for name in ("mlp", "mlp_norm")},
    }
    cut = state._replace(params=state.params | {"stacks": {"blocks": {"blocks": halves}}})
    assert_close(_logits(apart, cut), _logits(usual, state), EXACT)
    assert apart.parameter_count == usual.parameter_count and apart.flops_per_token(L) == usual.flops_per_token(L)


def test_any_order_scanned_is_that_order_unrolled_and_compiles_once():
    """And the mixture's drops are shown."""
    config = _model(*pattern_of("MA", LAYERS))
    state, found = random_model(config), []
    for scan in (True, False):
        graph = abstract_model(dataclasses.replace(config, scan=scan)).graph

        def loss(params, batch, graph=graph):
            model = merge(graph, state._replace(params=params))
            out = model.hidden(batch)
            return jnp.sum(jnp.sin(out.y)), (out.y, model.reported(out.sums.counts))

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        found.append(step(state.params, BATCH))
        step(state.params, training_batch(2, L, vocab_size=32, seed=1))
        assert step._cache_size() == 1
    ((_, (scanned, shown)), gradient), ((_, (unrolled, _)), of_unrolled) = found
    assert_close(scanned, unrolled, SAME_LOGITS)
    assert_close(gradient, of_unrolled, SAME_GRADIENT)
    assert 0 < float(shown["dropped"]) < 1


def test_cached_generation_is_the_uncached_forward():
    config = _model(*pattern_of("MA", LAYERS | {"M": dataclasses.replace(MIXTURE, dispatch=Capacity(factor=4.0))}))
    state, prompt = random_model(config, seed=1), [3, 1, 4]
    graph = abstract_model(config).graph
    (drawn,) = generate(graph, state, [prompt], tokens=5, sampling=Sampling(temperature=0.0), key=jax.random.key(0))
    tokens, ones = np.zeros((2, L), np.int32), np.ones((2, L), np.int32)
    tokens[0, :8] = [*prompt, *drawn]
    positions = np.broadcast_to(np.arange(L, dtype=np.int32), (2, L))
    batch = BATCH._replace(tokens=tokens, segment_ids=ones, positions=positions)
    likeliest = np.argmax(jax.jit(lambda state: merge(graph, state)(batch))(state)[0], axis=-1)
    assert drawn == likeliest[2:7].tolist() and len(set(drawn)) > 1


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_of_all_orders_in_the_budget(seed):
    """By tables of costs and of losses of neighbours, against every order."""
    table = random.Random(seed)
    costs = {letter: table.uniform(1, 3) for letter in "ADM"}
    losses = {pair: table.random() for pair in itertools.product("ADM", repeat=2)}
    asked: list[str] = []

    def cost(order: str) -> float:
        return sum(costs[letter] for letter in order)

    def loss(order: str) -> float:
        asked.append(order)
        return sum(losses[pair] for pair in itertools.pairwise(order))

    found = best_order("ADM", 5, loss=loss, cost=cost, budget=10.0, tries=120, seed=seed)
    assert len(asked) == len(set(asked)) <= 120
    every = ["".join(order) for order in itertools.product("ADM", repeat=5)]
    within = [order for order in every if cost(order) <= 10.0]
    assert len(within) < len(every)
    assert loss(found) == min(map(loss, within))


def test_of_no_more_orders_than_tries_the_best_is_found_for_certain():
    """Two layers of three kinds, by 200 tables."""
    every = ["".join(order) for order in itertools.product("ADM", repeat=2)]
    for seed in range(200):
        table = random.Random(seed)
        losses = {order: table.random() for order in every}
        costs = dict(zip("ADM", (1.0, table.uniform(1, 3), table.uniform(1, 3)), strict=True))

        def cost(order: str, costs: dict[str, float] = costs) -> float:
            return sum(costs[letter] for letter in order)

        found = best_order("ADM", 2, loss=losses.__getitem__, cost=cost, budget=4.0, tries=9, seed=seed)
        assert losses[found] == min(losses[order] for order in every if cost(order) <= 4.0)


def test_what_is_no_order_is_refused():
    with refused(ValueError, "order='AX'", "ADM"):
        pattern_of("AX", LAYERS)
    with refused(ValueError, "budget=1", "AAA"):
        best_order("AD", 3, loss=len, cost=len, budget=1, tries=5)
    with refused(ValueError, "population=0"):
        best_order("AD", 3, loss=len, cost=len, budget=9, tries=5, population=0)
    with refused(ValueError, "letters=''"):
        best_order("", 3, loss=len, cost=len, budget=9, tries=5)
    with refused(ValueError, "mlp=NoFeedForward()", "join=PreNorm()"):
        BlockConfig(mixer=LAYERS["A"], mlp=NoFeedForward())
    with refused(ValueError, "mlp=GatedMLPConfig", "join=MixerAlone()"):
        BlockConfig(mixer=LAYERS["A"], mlp=LAYERS["D"], join=MixerAlone())
