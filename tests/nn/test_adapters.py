"""Adapters start as nothing, count as published, and adapt the linears that are named (the rest: conformance)."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import packed_batch, random_model, variant
from tolerances import CLOSED_FORM, EIGHT_BITS, EXACT, SAME_LOGITS, SAME_SUMS, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.heads import LinearHead
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.linear.dora import DoRA
from jaxtrain.nn.linear.int8 import Int8
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.low_rank import LowRank
from jaxtrain.nn.linear.some import Some
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.nn.param import merge, split
from jaxtrain.nn.trainable import Adapters
from jaxtrain.surgery.linears import converted, plain
from jaxtrain.train.state import initial_model

WIDTH, HIDDEN = ((16, "embed"),), ((24, "mlp"),)
X = np.random.default_rng(0).standard_normal((2, 3, 16)).astype(np.float32)


def _built(config: LinearConfig) -> nnx.Module:
    return config.build(WIDTH, HIDDEN, rngs=nnx.Rngs(0))


def test_lora_starts_as_its_base_bit_for_bit_and_dora_as_its_base():
    base = _built(Dense())(X)
    assert_close(_built(LoRA(rank=4))(X), base, EXACT)
    assert_close(_built(DoRA(rank=4))(X), base, SAME_SUMS)


@pytest.mark.parametrize(
    ("config", "scale"), [(LoRA(rank=4, alpha=8), 2.0), (LoRA(rank=4, alpha=8, root_of_rank=True), 4.0)]
)
def test_the_update_is_the_product_of_its_factors_times_alpha_over_the_rank_or_its_root(config, scale):
    module = _built(config)
    module.update.b[...] = jnp.ones_like(module.update.b[...])
    desired = X @ (module.base.dense() + scale * module.update.a[...] @ module.update.b[...])
    assert_close(module(X), desired, SAME_SUMS)


def test_the_norms_of_doras_columns_are_its_magnitudes():
    module = _built(DoRA(rank=4))
    module.update.b[...] = jnp.ones_like(module.update.b[...])
    module.magnitude[...] = jnp.arange(1.0, 25.0)
    assert_close(np.linalg.norm(module.dense(), axis=0), np.arange(1.0, 25.0, dtype=np.float32), CLOSED_FORM)


def test_an_output_of_zero_weights_is_zero_with_dora():
    module = _built(DoRA(rank=4))
    module.set_dense(module.dense().at[:, 3].set(0.0))
    assert not np.asarray(module(X))[..., 3].any() and np.isfinite(module(X)).all()


def _decoder(linear: LinearConfig, **changes) -> DecoderConfig:
    block = variant().pattern[0]
    block = dataclasses.replace(
        block,
        mixer=dataclasses.replace(block.mixer, linear=linear),
        mlp=dataclasses.replace(block.mlp, linear=linear),
    )
    return variant(pattern=(block,), **changes)


ADAPTED = _decoder(LoRA(rank=2), head=LinearHead(linear=LoRA(rank=2)), trainable=Adapters())


def test_the_trained_parameters_are_the_ranks_times_the_sides_of_all_linears():
    """Hu et al. (2021), section 4: rank (inputs + outputs) for each matrix."""
    shapes = abstract_model(ADAPTED).shapes
    mixer, mlp = (32, 32), (32, 64)
    sides = [mixer, (32, 16), (32, 16), mixer, mlp, mlp, mlp]
    head = 32 + 64
    assert sum(x.size for x in jax.tree.leaves(shapes.params)) == 2 * (2 * sum(map(sum, sides)) + head)
    whole = abstract_model(plain(ADAPTED)).shapes.params
    assert sum(x.size for x in jax.tree.leaves(shapes.frozen)) == sum(x.size for x in jax.tree.leaves(whole))


def test_a_model_merged_has_the_logits_of_the_adapted_one_and_adapters_around_it_change_none():
    graphs = {config: abstract_model(config).graph for config in (ADAPTED, plain(ADAPTED))}
    initial = jax.jit(initial_model, static_argnums=0)
    adapted = random_model(ADAPTED)
    convert = jax.jit(converted, static_argnums=(1, 2))
    merged = convert(adapted, ADAPTED, plain(ADAPTED), random_model(plain(ADAPTED), seed=1))
    around = convert(merged, plain(ADAPTED), ADAPTED, initial(ADAPTED, jax.random.key(2)))
    batch = packed_batch([[20], [9, 11]], 20, vocab_size=64)
    of = jax.jit(lambda config, model: merge(graphs[config], model)(batch), static_argnums=0)
    logits = of(ADAPTED, adapted)
    assert_close(of(plain(ADAPTED), merged), logits, SAME_LOGITS)
    assert_close(of(ADAPTED, around), logits, SAME_LOGITS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(around.params) if leaf.ndim < 3 and leaf.shape[0] == 2)


def test_some_linears_of_a_layer_are_chosen_by_name():
    block = _decoder(Some(names=("query", "value"), linear=LoRA(rank=2))).pattern[0].mixer.build(32, rngs=nnx.Rngs(0))
    _, model = split(block)
    assert {name for name, own in model.params.items() if "update" in own} == {"query", "value"}


def test_a_name_that_a_layer_does_not_have_is_refused():
    mixer = dataclasses.replace(variant().pattern[0].mixer, linear=Some(names=("gate",), linear=LoRA(rank=2)))
    with refused(ValueError, "names=('gate',)", "'gate'", "query"):
        mixer.build(32, rngs=nnx.Rngs(0))


def test_an_adapter_around_a_tied_head_is_refused():
    with refused(ValueError, "tied_head.TiedHead", "'linear'"):
        load(Path("configs/quickstart.gin"), ["model.head=@TiedHead()", "model.head.linear=@LoRA(rank=2)"])


@pytest.mark.parametrize("linear", [LoRA(rank=2), DoRA(rank=2), LowRank(rank=16), Int8()], ids=repr)
def test_each_expert_of_a_mixture_takes_over_its_own_matrices(linear):
    def mixture(own: LinearConfig) -> DecoderConfig:
        expert = GatedMLPConfig(hidden=16, linear=own)
        block = dataclasses.replace(
            variant().pattern[0], mlp=MixtureConfig(experts=3, top_k=2, expert=expert, balances=(RouterBias(rate=0.1),))
        )
        return variant(pattern=(block,), repeats=1)

    source, target = mixture(Dense()), mixture(linear)
    model, initial = initial_model(source, jax.random.key(0)), initial_model(target, jax.random.key(1))
    found = jax.jit(converted, static_argnums=(1, 2))(model, source, target, initial)
    mine, theirs = (
        merge(abstract_model(config).graph, state).stacks["blocks"].blocks[0].mlp.experts.up
        for config, state in ((target, found), (source, model))
    )
    graph, state = split(mine)
    for number in range(3):
        one = merge(graph, jax.tree.map(lambda leaf, number=number: leaf[0, number], state))
        desired = np.asarray(theirs.kernel[...][0, number])
        assert_close(one.dense(), desired, EIGHT_BITS if linear == Int8() else SAME_SUMS)
