"""Blocks before the pattern are a stack of their own, and otherwise as blocks of a longer pattern."""

import dataclasses

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from messages import refused
from tiny import DECODER, packed_batch, random_model, variant
from tolerances import EXACT, SAME_LOGITS, assert_close

from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.some import Some
from jaxtrain.nn.moe.balances import RouterBias, RowLoss
from jaxtrain.nn.moe.routers import Stable
from jaxtrain.nn.param import merge
from jaxtrain.nn.trainable import Adapters
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.shapes import ModelState
from jaxtrain.surgery.linears import converted
from jaxtrain.train.gradients.pipelined import Pipelined

[DENSE] = DECODER.pattern
MIXTURE = dataclasses.replace(
    DENSE,
    mlp=MixtureConfig(
        experts=4,
        top_k=2,
        expert=GatedMLPConfig(hidden=16),
        balances=(RowLoss(coefficient=0.1), RouterBias(rate=0.1)),
    ),
)
FIRST = variant(first=(DENSE,) * 2, pattern=(MIXTURE,), repeats=2)
LONG = variant(pattern=(DENSE, DENSE, MIXTURE, MIXTURE), repeats=1)


def as_long(model: ModelState) -> ModelState:
    """Return the arrays of FIRST as those of LONG, whose four blocks are one repeat."""
    return ModelState(*map(_as_long, model))


def _as_long(tree):
    long = {}
    for path, leaf in flatten_dict(tree).items():
        if path[0] == "stacks":
            place = 0 if path[1] == "first" else 2
            long |= {
                ("stacks", "blocks", "blocks", place + repeat, *path[4:]): leaf[repeat][None] for repeat in range(2)
            }
        else:
            long[path] = leaf
    return unflatten_dict(long)


def test_first_blocks_are_the_beginning_of_a_longer_pattern():
    """In hidden states, losses of layers, gradients, new buffers, counts of parameters and FLOPs, and generation."""
    model, batch = random_model(FIRST), packed_batch([[20, 12], [16]], 32, vocab_size=64)

    def loss(params, buffers, graph):
        decoder = merge(graph, ModelState(params, {}, buffers))
        out = decoder.hidden(batch)
        total = (out.y**2).sum() + out.sums.terms["balance"]
        return total, (out.y, decoder.updated_buffers(out.sums.counts), decoder.reported(out.sums.counts))

    def of(config, model):
        graph = abstract_model(config).graph
        return jax.jit(jax.value_and_grad(lambda p, b: loss(p, b, graph), has_aux=True))(model.params, model.buffers)

    (value, (y, buffers, report)), gradient = of(FIRST, model)
    (long_value, (long_y, long_buffers, long_report)), long_gradient = of(LONG, as_long(model))
    assert_close((value, y), (long_value, long_y), SAME_LOGITS)
    assert_close(_as_long(gradient), long_gradient, SAME_LOGITS)
    assert_close(_as_long(buffers), long_buffers, EXACT)
    assert_close(report, long_report, EXACT)
    assert FIRST.layers == LONG.layers == 4 and FIRST.blocks == LONG.blocks
    assert FIRST.parameter_count == LONG.parameter_count
    assert FIRST.active_parameter_count == LONG.active_parameter_count
    assert FIRST.flops_per_token(32) == LONG.flops_per_token(32)


def test_a_cache_holds_the_first_blocks_as_well():
    model, key = random_model(FIRST), jax.random.key(0)
    options = {"tokens": 5, "sampling": Sampling(temperature=0.0), "key": key}
    [written] = generate(abstract_model(FIRST).graph, model, [[1, 2, 3]], **options)
    tokens = np.array([[1, 2, 3, *written]], np.int32)
    batch = packed_batch([[8]], 8, vocab_size=64)._replace(tokens=tokens)
    logits = jax.jit(lambda model: merge(abstract_model(FIRST).graph, model)(batch))(model)
    assert np.argmax(logits[0, 2:7], axis=-1).tolist() == written


def test_they_become_repeats_of_one_block_and_blocks_of_their_own():
    """An adapter around one of two blocks that are alike, and the weights with it merged."""
    mixer = dataclasses.replace(DENSE.mixer, linear=Some(names=("query",), linear=LoRA(rank=2)))
    adapted = variant(first=(DENSE, dataclasses.replace(DENSE, mixer=mixer)), pattern=(MIXTURE,), trainable=Adapters())
    assert [FIRST.stacks["first"].repeats, adapted.stacks["first"].repeats] == [2, 1]
    around, random = jax.jit(converted, static_argnums=(1, 2)), random_model(adapted)
    begun = around(random_model(FIRST), FIRST, adapted, random)
    assert_close(begun.params, random.params, EXACT)
    merged = around(begun, adapted, FIRST, random_model(FIRST, seed=1))
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, random_model(FIRST))
    batch = packed_batch([[20, 12], [16]], 32, vocab_size=64)
    logits = jax.jit(lambda model, config: merge(abstract_model(config).graph, model)(batch), static_argnums=1)
    assert_close(logits(merged, FIRST), logits(begun, adapted), SAME_LOGITS)


def test_their_routers_have_the_vocabulary_of_the_model():
    stable = dataclasses.replace(MIXTURE.mlp, router=Stable(vocab_size=63, switch_step=5), balances=())
    with refused(ValueError, "vocab_size=63", "vocab_size=64"):
        variant(first=(dataclasses.replace(DENSE, mlp=stable),))


def test_stages_do_not_run_them():
    gradients = Pipelined(schedule=GPipe(), microbatches=2)
    with refused(ValueError, "model.first", "Accumulate"):
        gradients.check(2, FIRST)
