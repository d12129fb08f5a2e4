"""The compiled program: one loop over ticks, two exchanges in it, none in a branch, memory that m does not change."""

import functools

import jax
from tiny import variant

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.remat import FullRemat
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.optimizers import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.planning.collectives import collectives
from jaxtrain.planning.hlo import parse
from jaxtrain.planning.memory import memory
from jaxtrain.planning.topology import devices_of
from jaxtrain.train.ahead import compile_step
from jaxtrain.train.phases import Phase
from jaxtrain.train.pipelined import Pipelined

# Large enough for the buffers to lie in main memory: small ones the compiler puts into the core's own, uncounted.
MODEL = variant(repeats=8, d_model=256, vocab_size=512, max_length=256, remat=FullRemat())
ROWS = 64  # of a microbatch


@functools.cache
def _compiled(schedule: Schedule, microbatches: int) -> jax.stages.Compiled:
    """The train step on v5e 2x4."""
    return compile_step(
        model=MODEL,
        objective=NextToken(),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, warmup_steps=1)),
        gradients=Pipelined(schedule=schedule, microbatches=microbatches),
        clip_norm=1.0,
        phase=Phase(steps=2, batch_size=ROWS * microbatches, sequence_length=256),
        mesh=MeshConfig(stage=4, fsdp=1, tensor=2).build(devices_of("v5e:2x4")),
    )


def test_one_loop_over_ticks_with_two_exchanges_in_it_and_none_in_a_branch():
    text = _compiled(PairedInterleaved(), 8).as_text()
    ticks = lower(PairedInterleaved().table(4, 8)).ticks
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


def test_temporaries_do_not_grow_with_the_microbatches():
    few, many = (memory(_compiled(PairedInterleaved(), m)).temporaries for m in (8, 32))
    assert few > 1e7 and many < 1.05 * few
