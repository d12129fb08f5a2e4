"""What layers hold, add to the loss and count, inside a pipeline: as without one (counted.py)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import pytest
from counted import counted
from messages import refused
from pipelined_decoder import pipelined, unpipelined
from tiny import program_of
from tolerances import EXACT, SAME_GRADIENT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import Decoder
from jaxtrain.nn.remat import FullRemat
from jaxtrain.objectives.base import Terms
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Constant
from jaxtrain.pipeline.residuals import ChunkInput, RepeatResiduals
from jaxtrain.pipeline.schedules.bitpipe import BitPipe
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.pipeline.schedules.v_zb import VZB
from jaxtrain.shapes import Batch
from jaxtrain.train.gradients import Pipelined
from jaxtrain.train.phases import Phase
from jaxtrain.train.program import Recipe

ROWS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking(NextToken):
    """Asks the model for more than one pass over its batch."""

    ask: Callable[[Decoder, Batch], object]

    def __call__(self, model, batch, keys) -> Terms:
        self.ask(model, batch)
        return NextToken.__call__(self, model, batch, keys)


EVERYTHING, CHUNK_INPUT = RepeatResiduals(), ChunkInput()


@pytest.mark.parametrize(
    ("schedule", "stages", "remat", "residuals"),
    [
        (PairedInterleaved(chunks_per_stage=1), 4, None, EVERYTHING),  # nothing moves, B with W
        (VZB(), 2, FullRemat(), EVERYTHING),  # layers move, W apart
        (TwoBP(schedule=BitPipe()), 2, None, CHUNK_INPUT),  # two copies of each layer, which are run a second time
    ],
    ids=str,
)
def test_terms_counts_and_frozen_weights_are_those_without_a_pipeline(schedule, stages, remat, residuals):
    model = counted(repeats=5 if stages == 2 else 4, **({"remat": remat} if remat else {}))
    found = pipelined(model, ROWS, schedule, 4, MeshConfig(stage=stages, fsdp=2), residuals=residuals)
    desired = unpipelined(model, ROWS)
    assert_close(found, desired, SAME_GRADIENT)
    assert_close(found.value[1].layers.counts, desired.value[1].layers.counts, EXACT)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, batch: model.hidden(batch._replace(tokens=batch.targets)),
        lambda model, batch: model.hidden(batch),  # and then once more
        lambda model, batch: model.hidden(batch, taps=("block_input",)),
    ],
    ids=["another batch", "twice", "taps"],
)
def test_an_objective_that_asks_for_what_a_pipeline_has_not_is_refused(ask):
    recipe = Recipe(
        model=counted(repeats=4, max_length=16),
        objective=Asking(ask=ask),
        optimizer=AdamW(learning_rate=Constant(peak=1e-3)),
        gradients=Pipelined(microbatches=4),
        clip_norm=1.0,
        phases=(Phase(steps=1, batch_size=ROWS, sequence_length=16),),
    )
    with refused(ValueError, "Accumulate"):
        program_of(recipe, MeshConfig(stage=2, fsdp=1).build(jax.devices()[:2])).trace()
