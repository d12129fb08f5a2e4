"""Parameters that repeats share: counted once, and with the gradients of all depths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from messages import refused
from tiny import random_model, training_batch
from tolerances import EXACT, SAME_GRADIENT, SAME_LOGITS, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.models.sharing import SharedBlocks, SharedLayers, Sharing
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.nf4 import NF4
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.moe.balances import RouterBias, RowLoss
from jaxtrain.nn.moe.dispatch import EveryExpert
from jaxtrain.nn.param import merge
from jaxtrain.nn.trainable import Adapters
from jaxtrain.optim.muon import takes
from jaxtrain.surgery.linears import converted
from jaxtrain.train.gradients import Pipelined

D, L, EXPERTS, REPEATS = 16, 12, 4, 2
MIXTURE = MixtureConfig(
    experts=EXPERTS,
    top_k=2,
    expert=GatedMLPConfig(hidden=8),
    balances=(RowLoss(coefficient=0.1), RouterBias(rate=0.01)),
    dispatch=EveryExpert(),
)
BLOCK = BlockConfig(mixer=AttentionConfig(heads=2, kv_heads=1, head_dim=8), mlp=MIXTURE)
WIDE = DecoderConfig(vocab_size=32, d_model=D, repeats=REPEATS, pattern=(BLOCK,), max_length=L, sharing=SharedLayers())
APART = dataclasses.replace(WIDE, sharing=None)
BATCH = training_batch(2, L, vocab_size=32)


def _changed(**changes) -> DecoderConfig:
    return dataclasses.replace(WIDE, **changes)


def _value_and_gradient(config: DecoderConfig, state):
    graph = abstract_model(config).graph

    def loss(params):
        model = merge(graph, state._replace(params=params))
        out = model.hidden(BATCH)
        logits = model.head.logits(out.y)
        weights = np.random.default_rng(5).standard_normal(logits.shape).astype(np.float32)
        return jnp.sum(weights * logits) + out.sums.terms["balance"], (logits, out.sums.counts)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)


def _for_each_repeat(state):
    """Return the same model with a copy of what is shared for each repeat."""
    axes = abstract_model(WIDE).axes

    def copied(facts, x):
        return np.broadcast_to(x, (REPEATS, *x.shape)) if facts.shared else x

    return jax.tree.map(copied, axes, state)


def test_a_repeat_more_costs_its_norms():
    numbers = {repeats: _changed(repeats=repeats).parameter_count for repeats in (1, 2, 5)}
    assert [numbers[repeats] - numbers[1] for repeats in (2, 5)] == [2 * D, 4 * 2 * D]
    assert _changed(repeats=5, sharing=SharedBlocks()).parameter_count == numbers[1]


def test_the_operations_of_a_token_are_those_of_as_many_repeats():
    assert WIDE.flops_per_token(L) == APART.flops_per_token(L)
    dense = dataclasses.replace(BLOCK, mlp=GatedMLPConfig(hidden=8))
    shared = _changed(pattern=(dense,))
    assert shared.active_parameter_count == shared.parameter_count


def test_a_shared_model_is_the_one_with_copies_and_its_gradient_is_the_sum_of_theirs():
    """Scanned and unrolled; and a token's experts differ from depth to depth."""
    state = random_model(WIDE)
    (_, (logits, counts)), gradient = _value_and_gradient(WIDE, state)
    unrolled = jax.jit(lambda state: merge(abstract_model(_changed(scan=False)).graph, state)(BATCH))(state)
    (_, (desired, _)), of_copies = _value_and_gradient(APART, _for_each_repeat(state))
    assert_close(logits, desired, SAME_LOGITS)
    assert_close(unrolled, desired, SAME_LOGITS)
    axes = abstract_model(WIDE).axes.params
    summed = jax.tree.map(lambda facts, dw: dw.sum(0) if facts.shared else dw, axes, of_copies)
    assert_close(gradient, summed, SAME_GRADIENT)
    load = np.asarray(counts["blocks"]["0"]["mlp"]["load"])
    assert load.shape == (REPEATS, EXPERTS) and not (load == load[0]).all()


def test_every_depth_moves_the_biases_of_its_own():
    state = random_model(WIDE)
    model = merge(abstract_model(WIDE).graph, state)
    load = np.array([[4.0, 2, 2, 0], [0, 4, 2, 2]], np.float32)
    counts = {"blocks": {"0": {"mlp": {"load": load, "dropped": 0 * load}}}}
    new, old = (
        tree["stacks"]["blocks"]["blocks"][0]["mlp"]["bias"] for tree in (model.updated_buffers(counts), state.buffers)
    )
    assert_close(np.asarray(new - old), 0.01 * np.sign(2 - load), SAME_LOGITS)


def test_cached_generation_is_that_of_the_model_with_copies():
    state, options = random_model(WIDE), {"tokens": 4, "sampling": Sampling(temperature=0.0), "key": jax.random.key(0)}
    drawn = [
        generate(abstract_model(config).graph, own, [[3, 1, 4], [1]], **options)
        for config, own in ((WIDE, state), (APART, _for_each_repeat(state)))
    ]
    assert drawn[0] == drawn[1] and len(set(drawn[0][0])) > 1


def test_muon_takes_the_shared_matrices_too():
    def taken(config: DecoderConfig) -> list[bool]:
        return jax.tree.leaves(jax.tree.map(takes, abstract_model(config).axes.params))

    assert taken(WIDE) == taken(APART) and any(taken(WIDE))


def _adapted(config: DecoderConfig) -> DecoderConfig:
    """Return the model with adapters around all linears of its blocks, those of the experts among them."""
    linear, expert = LoRA(rank=2, base=NF4(block=8)), dataclasses.replace(MIXTURE.expert, linear=LoRA(rank=2))
    mixer = dataclasses.replace(BLOCK.mixer, linear=linear)
    block = dataclasses.replace(BLOCK, mixer=mixer, mlp=dataclasses.replace(MIXTURE, expert=expert))
    return dataclasses.replace(config, pattern=(block,), trainable=Adapters())


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: DecoderConfig, state):
    return merge(abstract_model(config).graph, state)(BATCH)


@pytest.mark.parametrize("sharing", [SharedLayers(), SharedBlocks()], ids=lambda sharing: type(sharing).__name__)
def test_adapters_are_shared_too_and_merge_into_the_shared_matrices(sharing):
    base = _changed(sharing=sharing)
    adapted, around = _adapted(base), jax.jit(converted, static_argnums=(1, 2))
    state, random = random_model(base), random_model(adapted)
    begun = around(state, base, adapted, random)
    a = begun.params["stacks"]["blocks"]["blocks"][0]["mixer"]["query"]["update"]["a"]
    assert a.shape == (D, 2) and not any("norm" in path for path in flatten_dict(begun.params) for path in path[-2:-1])
    assert_close(begun.params, random.params, EXACT)  # nothing but adapters is trained
    merged = around(begun, adapted, base, random_model(base))
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, state)
    assert_close(_logits(base, merged), _logits(adapted, begun), SAME_LOGITS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _SharedKernels(Sharing):
    """Shares a part of what adapters are around."""

    paper = "none"

    def selects(self, path: str, parameter: nnx.Variable) -> bool:
        return path.endswith("base.kernel")


def test_what_does_not_serve_shared_parameters_is_refused():
    with refused(ValueError, "model.sharing=SharedLayers()", "Accumulate"):
        Pipelined(microbatches=2).check(2, WIDE)
    with refused(ValueError, "model.sharing=None", "sharing=SharedLayers()"):
        converted(random_model(WIDE), WIDE, APART, random_model(APART))
    mixer = dataclasses.replace(BLOCK.mixer, linear=LoRA(rank=2))
    kernels = _changed(pattern=(dataclasses.replace(BLOCK, mixer=mixer),), sharing=_SharedKernels())
    apart = _changed(sharing=_SharedKernels())
    with refused(ValueError, "model.sharing=_SharedKernels()", "blocks.0.mixer.key"):
        converted(random_model(apart), apart, kernels, random_model(kernels))
