"""The executor: gradients of the real decoder equal those without a pipeline, whatever the schedule and the mesh.

Schedules that differ for the executor: with and without W, with F and B in one tick, with data passed on in the stage,
with one payload and two, with one weight copy and two. scripts/check_pipeline.py runs all of them at all sizes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pipeline_cases import CASES, Case, table_of
from pipelined_decoder import largest_difference, pipelined, unpipelined
from tiny import random_params, variant
from tolerances import EXACT, assert_close

from jaxtrain.mesh import MeshConfig, shardings
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.remat import FullRemat, NoRemat, SaveDots
from jaxtrain.pipeline.executor import Parts, allocated
from jaxtrain.pipeline.keep import ChunkInput, Keep, LayerValues
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.placement import bidirectional, loop, v_shape, wave
from jaxtrain.pipeline.schedules.bitpipe import BitPipe
from jaxtrain.pipeline.schedules.dualpipe_v import DualPipeV
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.pipeline.schedules.one_f_one_b import OneFOneB
from jaxtrain.pipeline.schedules.paired_deferred_w import PairedDeferredW
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.v_zb import VZB
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.pipeline.simulator import peak_activations
from jaxtrain.pipeline.stage import Buffers
from jaxtrain.pipeline.stages import Stacking
from jaxtrain.pipeline.tick_program import TickProgram
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.state import abstract_state, state_from_params

ROWS = 16
UNEVEN = variant(repeats=10, dropout=0.1, tied_embeddings=True)
UNTIED = variant(repeats=8, dropout=0.1)


@pytest.mark.parametrize(
    ("schedule", "stages", "microbatches", "remat"),
    [
        (PairedInterleaved(), 4, 8, None),
        (PairedDeferredW(chunks_per_stage=3), 2, 4, FullRemat()),
        (ZBH1(), 8, 8, None),
        (VZB(), 4, 4, SaveDots()),
        (DualPipeV(), 2, 8, None),
        (BitPipe(), 4, 4, None),
        (GPipe(), 2, 8, FullRemat()),
    ],
    ids=str,
)
def test_loss_and_every_gradient_equal_those_without_a_pipeline(schedule, stages, microbatches, remat):
    config = UNEVEN if remat is None else variant(repeats=10, dropout=0.1, tied_embeddings=True, remat=remat)
    found = pipelined(config, ROWS, schedule, microbatches, MeshConfig(stage=stages, fsdp=1))
    assert largest_difference(found, unpipelined(UNEVEN, ROWS)) < 1e-5


@pytest.mark.parametrize(
    ("schedule", "remat"),
    [(PairedDeferredW(), FullRemat()), (OneFOneB(), NoRemat())],
    ids=["cut backward", "whole backward"],
)
def test_a_chunk_may_keep_its_input_alone(schedule, remat):
    config = variant(repeats=10, dropout=0.1, tied_embeddings=True, remat=remat)
    found = pipelined(config, ROWS, schedule, 4, MeshConfig(stage=2, fsdp=1), keep=ChunkInput())
    assert largest_difference(found, unpipelined(UNEVEN, ROWS)) < 1e-5


def _two_reads_exchanged(program: TickProgram) -> TickProgram:
    """Let the first two B of stage 0 read each other's residuals."""
    residual = program.backward.residual.copy()
    first, second = np.flatnonzero(residual[:, 0] >= 0)[:2]
    assert residual[first, 0] != residual[second, 0]
    residual[[first, second], 0] = residual[[second, first], 0]
    return dataclasses.replace(program, backward=program.backward._replace(residual=residual))


def test_a_slot_read_in_another_ones_place_shows():
    mesh, schedule = MeshConfig(stage=2, fsdp=1), PairedInterleaved(chunks_per_stage=1)
    found = pipelined(UNTIED, ROWS, schedule, 4, mesh, change=_two_reads_exchanged)
    assert not largest_difference(found, unpipelined(UNTIED, ROWS)) < 1e-2


def test_data_fsdp_and_tensor_axes_keep_working_inside_a_stage():
    found = pipelined(UNTIED, ROWS, PairedInterleaved(), 4, MeshConfig(stage=2, fsdp=2, tensor=2))
    assert largest_difference(found, unpipelined(UNTIED, ROWS)) < 1e-5


def _toy_parts() -> Parts:
    def embed(outer, data):
        return data * outer

    def layer(weights, data, x):
        return jnp.tanh(x @ weights)

    def head(outer, data, x):
        loss = jnp.sum(x * outer)
        return loss, loss

    return Parts(
        embed, layer, head, outer_names=(None, None, "width"), layer_names=(None, None), compute_dtype="float32"
    )


def _allocated(case: Case, stages: int, microbatches: int, keep: Keep) -> Buffers:
    """Shapes of what the stages keep from tick to tick with one layer a chunk, and one more in the first."""
    table = table_of(case.schedule, stages, microbatches)
    outer, blocks = jnp.ones((1, 1, 4)), jnp.ones((table.placement.chunks + 1, 4, 4))
    data = jnp.ones((microbatches, 2, 3, 4))
    with jax.set_mesh(MeshConfig(stage=stages, fsdp=1).build(jax.devices()[:stages])):
        return allocated(_toy_parts(), lower(table), outer, blocks, data, keep=keep)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_executor_allocates_the_slots_that_the_simulator_counts(case):
    stages, longest = 4, 2
    for microbatches in (case.fewest * stages, 4 * stages):
        slots = max(peak_activations(table_of(case.schedule, stages, microbatches)))
        for keep, rows in ((LayerValues(), longest), (ChunkInput(), 1)):
            buffers = _allocated(case, stages, microbatches, keep)
            assert {kept.shape[:2] for kept in buffers.kept} == {(stages, rows * slots)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_stages_keep_grows_with_the_microbatches_only_where_the_schedule_says_so(case):
    few, many = (
        sum(leaf.size for leaf in jax.tree.leaves(_allocated(case, 4, m, LayerValues())._replace(weight_gradients=())))
        for m in (16, 32)  # PairedDeferredW with one chunk a stage keeps up to 10
    )
    assert many > 1.5 * few if case.grows else many == few


@pytest.mark.parametrize("repeats", [12, 13])
@pytest.mark.parametrize(
    "placement", [loop(4), loop(4, 3), v_shape(4), wave(2, 2), bidirectional(loop(4)), bidirectional(v_shape(2))]
)
def test_every_stage_gets_the_layers_of_its_chunks_and_gradients_find_the_way_back(placement, repeats):
    stacking = Stacking(placement=placement, repeats=repeats)
    blocks = jnp.arange(1.0, repeats + 1)
    with jax.set_mesh(MeshConfig(stage=placement.stages, fsdp=1).build(jax.devices()[: placement.stages])):
        stacked = jax.jit(stacking.stack)(blocks)
        there = jnp.arange(stacked.shape[2])[None, None] < stacking.lengths[..., None]
        (back,) = jax.jit(jax.linear_transpose(stacking.stack, blocks))(jnp.where(there, stacked, 0.0))
    for stage, held in enumerate(placement.held):
        for place, (_, chunk) in enumerate(held):
            layers = placement.layers(repeats)[chunk]
            np.testing.assert_array_equal(stacked[stage, place, : len(layers)], np.array(layers) + 1.0)
    np.testing.assert_array_equal(back, placement.replicas * blocks)


def test_a_checkpoint_restores_on_another_number_of_stages_and_on_none(tmp_path):
    _, _, names = abstract_model(UNTIED)
    tx = optax.sgd(0.1)

    def laid_out(stages: int):
        mesh = MeshConfig(stage=stages, fsdp=1).build(jax.devices()[:stages])
        return abstract_state(UNTIED, tx, names, mesh), shardings(names, random_params(UNTIED), mesh)

    params = jax.device_put(random_params(UNTIED), laid_out(4)[1])
    leaf = params["blocks"]["blocks"][0]["mlp"]["up"]
    assert leaf.sharding.shard_shape(leaf.shape)[0] == UNTIED.repeats // 4
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, Snapshot(state_from_params(params, tx), {}, {}))
    for stages in (2, 1):
        restored = Checkpoints(tmp_path).restore_state(1, laid_out(stages)[0])
        assert_close(restored.params, params, EXACT)
