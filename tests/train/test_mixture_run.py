"""A mixture with balance loss and bias has the same loss on any mesh, in microbatches, recomputed and in pipelines."""

import dataclasses

import jax
import numpy as np
import pytest
import same_loss
from tiny import variant
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import RouterBias, RowLoss
from jaxtrain.nn.moe.dispatch import Dispatch, Exchange
from jaxtrain.nn.remat import FullRemat, SaveExchanged
from jaxtrain.pipeline.schedules.chimera import Chimera
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.train.gradients import Accumulate
from jaxtrain.train.gradients.pipelined import Pipelined

EXPERT = GatedMLPConfig(hidden=24)
BALANCES = (RowLoss(coefficient=0.1), RouterBias(rate=0.05))
MIXTURE = MixtureConfig(experts=8, top_k=2, expert=EXPERT, balances=BALANCES)
EXCHANGED = Exchange(factor=1.0)


def _decoder(dispatch: Dispatch = MIXTURE.dispatch, **changes) -> DecoderConfig:
    block = dataclasses.replace(variant().pattern[0], mlp=dataclasses.replace(MIXTURE, dispatch=dispatch))
    return variant(pattern=(block,), **changes)


@pytest.fixture(scope="module")
def alone():
    return same_loss.losses(MeshConfig(), config=_decoder(), dropout=0.0, devices=jax.devices()[:1], steps=4)


WAYS = {
    "experts": {"mesh_config": MeshConfig(fsdp=2, expert=2, tensor=2)},
    "experts alone": {"mesh_config": MeshConfig(fsdp=1, expert=8), "config": _decoder(EXCHANGED)},
    "experts with tensor": {
        "mesh_config": MeshConfig(fsdp=1, expert=4, tensor=2),
        "config": _decoder(Exchange(pieces=2), remat=SaveExchanged()),
    },
    "context": {"mesh_config": MeshConfig(context=2, fsdp=4)},
    "microbatches and remat": {
        "mesh_config": MeshConfig(fsdp=2),
        "devices": slice(0, 2),
        "gradients": Accumulate(microbatches=4),
        "config": _decoder(remat=FullRemat()),
    },
    "zero bubble": {
        "mesh_config": MeshConfig(stage=2, fsdp=1, expert=4),
        "gradients": Pipelined(microbatches=4, schedule=ZBH1()),
        "config": _decoder(EXCHANGED),
    },
    "two copies": {
        "mesh_config": MeshConfig(stage=2, fsdp=2, tensor=2),
        "gradients": Pipelined(microbatches=4, schedule=TwoBP(schedule=Chimera())),
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_that_of_one_device_with_balance_and_bias(way, alone):
    options = {"config": _decoder()} | WAYS[way]
    if "devices" in options:
        options["devices"] = jax.devices()[options["devices"]]
    found = same_loss.losses(**options, dropout=0.0, steps=4)
    assert_close(np.array(found), np.array(alone), SAME_LOSS_ON_ANY_MESH)
