"""A train step of a hybrid decoder compiled for hardware that is not there: its kernels, each counted by name."""

import jax
import numpy as np
from absent import H100, compile_for
from compiled_kernels import kernels_in
from tiny import random_params, training_batch

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.attention import AttentionConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.decay import ChannelDecay, StepDecay
from jaxtrain.nn.delta_rule import DeltaRuleConfig
from jaxtrain.nn.linear_attention import LinearAttentionConfig
from jaxtrain.nn.mlp import MLPConfig
from jaxtrain.nn.remat import FullRemat, NoRemat, RematPolicy
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.optimizers import AdamW, transformation
from jaxtrain.optim.schedules import Cosine
from jaxtrain.train.gradients import Accumulate
from jaxtrain.train.state import state_from_params
from jaxtrain.train.step import make_train_step


def _hybrid(implementation: str, remat: RematPolicy) -> DecoderConfig:
    shape = dict(heads=1, kv_heads=1, head_dim=128, value_dim=128, chunk_size=64, implementation=implementation)
    stepped = LinearAttentionConfig(**shape, decay=StepDecay())
    others = (LinearAttentionConfig(**shape, decay=ChannelDecay()), DeltaRuleConfig(**shape, decay=StepDecay()))
    mixers = (*(others if implementation == "tpu" else (stepped,)), AttentionConfig(heads=1, kv_heads=1, head_dim=128))
    return DecoderConfig(
        vocab_size=256,
        d_model=128,
        repeats=2,
        pattern=tuple(BlockConfig(mixer=mixer, mlp=MLPConfig(hidden=256)) for mixer in mixers),
        max_length=128,
        tied_embeddings=True,  # the fewer parameters, the fewer kernels of XLA's own to compile
        compute_dtype="bfloat16",
        remat=remat,
    )


def _kernels_of_a_step(config: DecoderConfig, topology: str) -> dict[str, int]:
    graph, _, names = abstract_model(config)
    optimizer = AdamW(learning_rate=Cosine(peak=3e-3, warmup_steps=4))
    rate = optimizer.learning_rate.build(20)
    tx = transformation(optimizer, rate, names, clip_norm=None)
    step = make_train_step(graph, NextToken(), Accumulate(), tx, rate, dropout=False)
    state = jax.eval_shape(lambda params: state_from_params(params, tx), random_params(config))
    batch = jax.tree.map(np.asarray, training_batch(2, 128, vocab_size=256))
    compiled = compile_for(topology, lambda state, batch: step(state, batch, jax.random.key(0))[:2], state, batch)
    return kernels_in(compiled)


def test_a_step_on_tpu_under_remat_runs_each_forward_kernel_twice_and_the_others_once_a_layer():
    """The scans over repeats hold each kernel once a layer."""
    assert _kernels_of_a_step(_hybrid("tpu", FullRemat()), "v5e:2x2") == {
        "linear_attention_forward": 2,
        "linear_attention_states": 1,
        "linear_attention_backward": 1,
        "delta_rule_forward": 2,
        "delta_rule_states": 1,
        "delta_rule_backward": 1,
    }


def test_a_step_on_an_h100_without_remat_runs_each_kernel_once_a_layer():
    """By each step's decay alone: the other kernels take long to compile, and are compiled by themselves."""
    expected = {f"linear_attention_{part}": 1 for part in ("forward", "states", "backward")}
    assert _kernels_of_a_step(_hybrid("gpu", NoRemat()), H100) == expected
