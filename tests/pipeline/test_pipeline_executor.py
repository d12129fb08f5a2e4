"""The executor: gradients of the real decoder equal those without a pipeline, whatever the schedule and the mesh.

Schedules that differ for the executor: with and without W, with F and B in one tick, with data passed on in the stage,
with one payload and two, with one weight copy and two. scripts/check_pipeline.py runs all of them at all sizes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pipeline_cases import CASES, program_of, table_of
from pipelined_decoder import pipelined, unpipelined
from tiny import matrix, random_params, variant
from tolerances import EXACT, SAME_GRADIENT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.heads import TiedHead
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.remat import FullRemat, SaveDots
from jaxtrain.pipeline.executor import Parts, allocated, value_and_grad
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.placement import bidirectional, loop, v_shape, wave
from jaxtrain.pipeline.residuals import ChunkInput, RepeatResiduals
from jaxtrain.pipeline.schedules.bitpipe import BitPipe
from jaxtrain.pipeline.schedules.dualpipe_v import DualPipeV
from jaxtrain.pipeline.schedules.interleaved_zero_bubble import InterleavedZeroBubble
from jaxtrain.pipeline.schedules.paired_deferred_w import PairedDeferredW
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.pipeline.schedules.v_zb import VZB
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.stages import Stacking
from jaxtrain.pipeline.tick_program import TickProgram
from jaxtrain.pipeline.ticks import pack
from jaxtrain.shapes import ModelState
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.state import abstract_state, state_of

ROWS = 16
UNEVEN = variant(repeats=10, dropout=0.1, head=TiedHead())
CHUNK_INPUT, EVERYTHING = ChunkInput(), RepeatResiduals()


@pytest.mark.parametrize(
    ("schedule", "stages", "microbatches", "remat", "residuals"),
    [
        (PairedInterleaved(), 4, 8, None, EVERYTHING),
        (PairedDeferredW(chunks_per_stage=3), 2, 4, FullRemat(), CHUNK_INPUT),
        (ZBH1(), 8, 8, None, EVERYTHING),
        (VZB(), 4, 4, SaveDots(), EVERYTHING),
        (BitPipe(), 4, 4, None, CHUNK_INPUT),
        (InterleavedZeroBubble(), 4, 2, None, EVERYTHING),  # fewer microbatches than stages
    ],
    ids=str,
)
def test_loss_and_every_gradient_equal_those_without_a_pipeline(schedule, stages, microbatches, remat, residuals):
    config = UNEVEN if remat is None else variant(repeats=10, dropout=0.1, head=TiedHead(), remat=remat)
    found = pipelined(config, ROWS, schedule, microbatches, MeshConfig(stage=stages, fsdp=1), residuals=residuals)
    assert_close(found, unpipelined(UNEVEN, ROWS), SAME_GRADIENT)


def test_two_results_may_go_the_same_way_in_one_exchange():
    table = table_of(DualPipeV(), 4, 8)
    in_pairs = lower(table, ticks=pack(table, paired=True))  # its own choice is one action a tick, one result each way
    assert in_pairs.payloads == (2, 2)
    mesh = MeshConfig(stage=4, fsdp=1)
    found = pipelined(UNEVEN, ROWS, DualPipeV(), 8, mesh, change=lambda _: in_pairs)
    assert_close(found, unpipelined(UNEVEN, ROWS), SAME_GRADIENT)


def _two_reads_exchanged(program: TickProgram) -> TickProgram:
    """Let the first two B of stage 0 read each other's residuals."""
    residual = program.backward.residual.copy()
    first, second = np.flatnonzero(residual[:, 0] >= 0)[:2]
    assert residual[first, 0] != residual[second, 0]
    residual[[first, second], 0] = residual[[second, first], 0]
    return dataclasses.replace(program, backward=program.backward._replace(residual=residual))


def test_a_slot_read_in_another_ones_place_shows():
    program = lower(table_of(PairedInterleaved(chunks_per_stage=1), 2, 4))
    outer, blocks, data = jnp.ones((1, 1, 4)), _random(2, 4, 4), _random(4, 2, 3, 4)

    def loss(outer, blocks, data):
        x = data.reshape(-1, *data.shape[2:]) * outer
        return jnp.sum(functools.reduce(lambda x, w: jnp.tanh(x @ w), blocks, x) * outer)

    desired = jax.grad(loss, argnums=1)(outer, blocks, data)
    with jax.set_mesh(MeshConfig(stage=2, fsdp=1).build(jax.devices()[:2])):
        run = functools.partial(value_and_grad, _toy_parts(), residuals=EVERYTHING, poison=True)
        found, wrong = (
            jax.jit(functools.partial(run, each))(outer, ModelState(blocks), data).blocks_gradient
            for each in (program, _two_reads_exchanged(program))
        )
    assert_close(found, desired, SAME_GRADIENT)
    assert not np.allclose(wrong, desired, rtol=1e-2, atol=1e-2)


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("schedule", [PairedInterleaved(), TwoBP(schedule=BitPipe())], ids=str)
def test_fsdp_and_tensor_axes_keep_working_inside_a_stage(schedule):
    """With one weight copy and B and W together; with two, which both send gradients to their shards, and W."""
    found = pipelined(UNEVEN, ROWS, schedule, 4, MeshConfig(stage=2, fsdp=2, tensor=2))
    assert_close(found, unpipelined(UNEVEN, ROWS), SAME_GRADIENT)


def _by_name(implementation: str | None) -> DecoderConfig:
    """Both kinds of mixers, with a norm that keeps the rounding of tiny heads small (docs/log.md)."""
    heads = {"heads": 4, "kv_heads": 2, "head_dim": 8, "implementation": implementation}
    delta_rule = DeltaRuleConfig(**heads, value_dim=8, chunk_size=16, norm=RMSNormConfig(epsilon=1.0))
    mixers = AttentionConfig(**heads), delta_rule
    return variant(repeats=4, pattern=tuple(BlockConfig(mixer=m, mlp=GatedMLPConfig(hidden=64)) for m in mixers))


@pytest.mark.parametrize("schedule", [PairedInterleaved(chunks_per_stage=1), TwoBP(schedule=BitPipe())], ids=str)
def test_implementations_by_name_run_on_each_device_of_a_stage(schedule):
    """Regions inside those of the stages, with B and W together and apart."""
    found = pipelined(_by_name("xla"), ROWS, schedule, 4, MeshConfig(stage=2, fsdp=2, tensor=2))
    assert_close(found, unpipelined(_by_name(None), ROWS), SAME_GRADIENT)


def _toy_parts() -> Parts:
    def embed(outer, data):
        return data * outer

    def layer(weights, data, x):
        return (jnp.tanh(x @ weights), None), {}

    def head(outer, data, x):
        loss = jnp.sum(x * outer)
        return loss, loss

    return Parts(
        embed,
        layer,
        head,
        outer_axes=matrix(None, None, "width"),
        repeat_axes=ModelState(matrix(None, None)),
        compute_dtype="float32",
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_executor_allocates_the_slots_of_the_program(case):
    """Those are the simulator's peak, and constant in the microbatches: test_pipeline_schedules.py."""
    stages, microbatches, longest = 4, 16, 2
    program = program_of(case.schedule, stages, microbatches)
    outer, blocks = jnp.ones((1, 1, 4)), ModelState(jnp.ones((program.placement.chunks + 1, 4, 4)))
    data, slots = jnp.ones((microbatches, 2, 3, 4)), program.slots
    with jax.set_mesh(MeshConfig(stage=stages, fsdp=1).build(jax.devices()[:stages])):
        for residuals, rows in ((EVERYTHING, longest), (CHUNK_INPUT, 1)):
            found = allocated(_toy_parts(), program, outer, blocks, data, residuals=residuals)
            assert {len(stored) for stored in found.residuals} == {stages * rows * slots.residuals}
            assert {len(made) for made in jax.tree.leaves(found.deferred)} <= {stages * longest * slots.deferred}
            mailboxes = found.inputs, found.gradients, found.from_previous, found.from_next
            sizes = slots.inputs + 1, slots.gradients + 1, *program.payloads
            assert [len(mailbox) for mailbox in mailboxes] == [stages * size for size in sizes]


@pytest.mark.parametrize(
    ("placement", "repeats"),
    [
        (loop(4), 12),  # nothing moves
        (loop(4, 3), 12),
        (v_shape(4), 12),
        (wave(2, 2), 13),
        (bidirectional(loop(4)), 12),
        (bidirectional(v_shape(2)), 13),
    ],
)
def test_every_stage_gets_the_layers_of_its_chunks_and_gradients_find_the_way_back(placement, repeats):
    stacking = Stacking(placement=placement, repeats=repeats)
    blocks = jnp.arange(1.0, repeats + 1)

    def there_and_back(blocks):
        stacked = stacking.stack(blocks)
        there = jnp.arange(stacked.shape[2])[None, None] < stacking.lengths[..., None]
        return stacked, *jax.linear_transpose(stacking.stack, blocks)(jnp.where(there, stacked, 0.0))

    with jax.set_mesh(MeshConfig(stage=placement.stages, fsdp=1).build(jax.devices()[: placement.stages])):
        stacked, back = jax.jit(there_and_back)(blocks)
    for stage, held in enumerate(placement.held):
        for place, (_, chunk) in enumerate(held):
            layers = placement.repeats(repeats)[chunk]
            np.testing.assert_array_equal(stacked[stage, place, : len(layers)], np.array(layers) + 1.0)
    np.testing.assert_array_equal(back, placement.replicas * blocks)


@pytest.mark.parametrize("repeats", [8, 10])
def test_a_checkpoint_restores_on_another_number_of_stages_and_on_none(repeats, tmp_path):
    """Moments as well; layers that do not divide by the stages lie whole on each, those that do on their own."""
    config, tx = variant(repeats=repeats), optax.adam(0.1)
    _, _, axes = abstract_model(config)

    def laid_out(stages: int):
        return abstract_state(config, tx, axes, MeshConfig(stage=stages, fsdp=1).build(jax.devices()[:stages]))

    desired = jax.jit(lambda params: state_of(ModelState(params), tx))(random_params(config))
    desired = jax.tree.map(lambda x: x + jnp.ones_like(x), desired)
    placed = jax.device_put(desired, jax.tree.map(lambda x: x.sharding, laid_out(4)))
    leaf = placed.opt_state[0].mu["stacks"]["blocks"]["blocks"][0]["mlp"]["up"]["kernel"]
    assert leaf.sharding.shard_shape(leaf.shape)[0] == (repeats // 4 if repeats % 4 == 0 else repeats)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, Snapshot(placed, {}, {}))
    for stages in (2, 1):
        assert_close(Checkpoints(tmp_path).restore_state(1, laid_out(stages)), desired, EXACT)
