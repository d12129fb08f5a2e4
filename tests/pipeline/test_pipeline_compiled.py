"""The compiled program: one loop over ticks, two exchanges in it, none in a branch, memory that m does not change."""

import functools

import jax
import pytest
from compiled_kernels import QUICKLY, kernels_in
from tiny import program_of, variant

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.moe.dispatch import Exchange
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.planning.collectives import collectives
from jaxtrain.planning.hlo import parse
from jaxtrain.planning.memory import memory
from jaxtrain.planning.topology import devices_of
from jaxtrain.train.gradients.pipelined import Pipelined
from jaxtrain.train.phases import Phase
from jaxtrain.train.program import Recipe

# Large enough for the buffers to lie in main memory: small ones the compiler puts into the core's own, uncounted.
# Without remat a token's activations outweigh its 20 bytes of batch, which do grow with the microbatches.
LARGE = variant(repeats=8, d_model=256, vocab_size=256, max_length=256)


def _by_kernel(implementation: str) -> DecoderConfig:
    """A decoder whose attention is a kernel asked for by name, on each device of a stage for itself."""
    attention = AttentionConfig(heads=2, kv_heads=2, head_dim=128, implementation=implementation)
    block = BlockConfig(mixer=attention, mlp=MLPConfig(hidden=256))
    return variant(repeats=4, d_model=128, pattern=(block,), max_length=128, compute_dtype="bfloat16")


DEFAULT, WHOLE_STAGES = PairedInterleaved(), PairedInterleaved(chunks_per_stage=1)
ROWS = 16  # of a microbatch
KERNELS = ("flash_attention_forward", "flash_attention_dq", "flash_attention_dkv")


def _with_experts() -> DecoderConfig:
    """A decoder whose tokens are exchanged between the devices of a stage, in as many rounds as its loads need."""
    mixture = MixtureConfig(experts=8, top_k=2, expert=MLPConfig(hidden=128), dispatch=Exchange())
    block = BlockConfig(mixer=AttentionConfig(heads=2, kv_heads=2, head_dim=64), mlp=mixture)
    return variant(repeats=4, d_model=128, pattern=(block,), max_length=128, compute_dtype="bfloat16")


BY_TENSOR, BY_EXPERTS = MeshConfig(stage=4, fsdp=1, tensor=2), MeshConfig(stage=2, fsdp=1, expert=4)


@functools.cache
def _compiled(
    schedule: Schedule, microbatches: int, topology: str, model: DecoderConfig, mesh_config: MeshConfig = BY_TENSOR
) -> jax.stages.Compiled:
    """The train step on eight devices."""
    recipe = Recipe(
        model=model,
        objective=NextToken(),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, warmup_steps=1)),
        gradients=Pipelined(schedule=schedule, microbatches=microbatches),
        clip_norm=1.0,
        phases=(Phase(steps=2, batch_size=ROWS * microbatches, sequence_length=model.max_length),),
    )
    mesh = mesh_config.build(devices_of(topology))
    return program_of(recipe, mesh).compile(QUICKLY if topology.startswith("h100") else None)


@pytest.mark.parametrize(
    ("schedule", "topology", "model", "mesh"),
    [
        (DEFAULT, "v5e:2x4", LARGE, BY_TENSOR),
        (ZBH1(), "v5e:2x4", _by_kernel("tpu"), BY_TENSOR),
        (WHOLE_STAGES, "h100:1x8", _by_kernel("gpu"), BY_TENSOR),
        (ZBH1(), "v5e:2x4", _with_experts(), BY_EXPERTS),
    ],
)
def test_one_loop_over_ticks_with_two_exchanges_in_it_and_none_in_a_branch(schedule, topology, model, mesh):
    compiled = _compiled(schedule, 8, topology, model, mesh)
    text = compiled.as_text()
    ticks = lower(schedule.table(mesh.stage, 8)).ticks
    program = parse(text)
    bodies = [
        instruction.attribute(r"\bbody=%?([\w.\-]+)")
        for computation, times, _ in program.runs()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while" and times == 1
    ]
    exchanges = [item for item in collectives(text).items if item.kind == "collective-permute" and item.times == ticks]
    assert len(exchanges) == 2
    (loop,) = {item.computation for item in exchanges}
    assert loop in bodies
    in_a_loop = [item for item in collectives(text).items if item.kind == "collective-permute" and item.times > 1]
    assert in_a_loop == exchanges
    by_name = model.pattern[0].mixer.implementation is not None
    assert kernels_in(compiled) == (dict.fromkeys(KERNELS, 1) if by_name else {})  # in F, and in B alone


def test_temporaries_do_not_grow_with_the_microbatches():
    few, many = (memory(_compiled(DEFAULT, m, "v5e:2x4", LARGE)).temporaries for m in (8, 32))
    assert few > 1e7 and many < 1.05 * few
