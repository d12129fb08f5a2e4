"""What layers hold, add to the loss and count, inside a pipeline: as without one (counted.py)."""

import pytest
from counted import counted
from pipelined_decoder import pipelined, unpipelined
from tolerances import EXACT, SAME_GRADIENT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.remat import FullRemat
from jaxtrain.pipeline.keep import ChunkInput, LayerValues
from jaxtrain.pipeline.schedules.bitpipe import BitPipe
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.pipeline.schedules.v_zb import VZB

ROWS = 8
EVERYTHING, CHUNK_INPUT = LayerValues(), ChunkInput()


@pytest.mark.parametrize(
    ("schedule", "stages", "remat", "keep"),
    [
        (PairedInterleaved(chunks_per_stage=1), 4, None, EVERYTHING),  # nothing moves, B with W
        (VZB(), 2, FullRemat(), EVERYTHING),  # layers move, W apart
        (TwoBP(schedule=BitPipe()), 2, None, CHUNK_INPUT),  # two copies of each layer, which are run a second time
    ],
    ids=str,
)
def test_terms_counts_and_frozen_weights_are_those_without_a_pipeline(schedule, stages, remat, keep):
    model = counted(repeats=5 if stages == 2 else 4, **({"remat": remat} if remat else {}))
    found = pipelined(model, ROWS, schedule, 4, MeshConfig(stage=stages, fsdp=2), keep=keep)
    desired = unpipelined(model, ROWS)
    assert_close(found, desired, SAME_GRADIENT)
    assert_close(found.value[1].layers.counts, desired.value[1].layers.counts, EXACT)
