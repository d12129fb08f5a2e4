"""A train step of a hybrid decoder compiled ahead of time: its kernels, each counted by name."""

import jax
import pytest
from compiled_kernels import QUICKLY, kernels_in
from jaxtrain_kernels.block_quant import QuantizedArray
from tiny import program_of

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import TiedHead
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.decay import ChannelDecay, StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.nn.remat import FullRemat, NoRemat, RematPolicy
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.schedules import Cosine
from jaxtrain.planning.topology import devices_of
from jaxtrain.train.gradients import Accumulate
from jaxtrain.train.phases import Phase
from jaxtrain.train.program import Recipe

LENGTH = 128
RATES = Cosine(peak=3e-3, warmup_steps=4)


def _hybrid(implementation: str, remat: RematPolicy) -> DecoderConfig:
    heads = dict(heads=2, kv_heads=2, head_dim=128, implementation=implementation)
    shape = dict(**heads, value_dim=128, chunk_size=64)
    mixers = (
        LinearAttentionConfig(**shape, decay=StepDecay()),
        LinearAttentionConfig(**shape, decay=ChannelDecay()),
        DeltaRuleConfig(**shape, decay=StepDecay()),
        AttentionConfig(**heads),
    )
    return DecoderConfig(
        vocab_size=256,
        d_model=128,
        repeats=2,
        pattern=tuple(BlockConfig(mixer=mixer, mlp=MLPConfig(hidden=256)) for mixer in mixers),
        max_length=LENGTH,
        head=TiedHead(),  # the fewer parameters, the fewer kernels of XLA's own to compile
        compute_dtype="bfloat16",
        remat=remat,
    )


def _kernels_of_a_step(model: DecoderConfig, topology: str, mesh: MeshConfig, **options) -> dict[str, int]:
    recipe = Recipe(
        model=model,
        objective=NextToken(),
        optimizer=_optimizer(model),
        gradients=Accumulate(),
        clip_norm=None,
        phases=(Phase(steps=20, batch_size=4, sequence_length=LENGTH),),
    )
    return kernels_in(program_of(recipe, mesh.build(devices_of(topology))).compile(options))


def _optimizer(model: DecoderConfig) -> AdamW8bit:
    return AdamW8bit(learning_rate=RATES, implementation=model.pattern[0].mixer.implementation)


def _expected(model: DecoderConfig, forward: int) -> dict[str, int]:
    """Two of the four mixers are linear attention; the update runs once for every parameter with 8-bit moments."""
    _, (shapes, *_), (axes, *_) = abstract_model(model)
    moments = jax.eval_shape(_optimizer(model).build(RATES.build(20), axes).init, shapes).m
    eight_bit = [m for m in jax.tree.leaves(moments, is_leaf=_is_eight_bit) if _is_eight_bit(m)]
    parts = {"forward": forward, "states": 1, "backward": 1}
    return (
        {f"linear_attention_{part}": 2 * count for part, count in parts.items()}
        | {f"delta_rule_{part}": count for part, count in parts.items()}
        | {"flash_attention_forward": forward, "flash_attention_dq": 1, "flash_attention_dkv": 1}
        | {"adamw_8bit": len(eight_bit)}
    )


def _is_eight_bit(moment) -> bool:
    return isinstance(moment, QuantizedArray)


def test_a_step_on_tpus_under_remat_runs_each_forward_kernel_twice_and_the_others_once_a_layer():
    """The scans over repeats hold each kernel once a layer."""
    model = _hybrid("tpu", FullRemat())
    found = _kernels_of_a_step(model, "v5e:2x2", MeshConfig(fsdp=2, tensor=2))
    assert found == _expected(model, forward=2)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA of 0.11.2 has no plan for its fusions, see docs/log.md")
def test_a_step_on_h100s_without_remat_runs_each_kernel_once_a_layer():
    """Its half a minute goes into ptxas, which compiles the recurrent kernels nowhere else in the tests."""
    model = _hybrid("gpu", NoRemat())
    found = _kernels_of_a_step(model, "h100:1x2", MeshConfig(fsdp=2), **QUICKLY)
    assert found == _expected(model, forward=1)
