"""Mixtures have the same loss on any mesh, in microbatches, recomputed and in pipelines, however tokens are routed."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import same_loss
from tiny import variant
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.config_types import subclasses
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import (
    Balance,
    ClusterLoss,
    ExcessLoss,
    LoadLoss,
    MutualInformation,
    RouterBias,
    RowLoss,
    TargetBias,
    ZLoss,
)
from jaxtrain.nn.moe.dispatch import Dispatch, Exchange
from jaxtrain.nn.moe.routers import (
    ByTask,
    InputDropout,
    Jitter,
    ProductKeys,
    Router,
    Stable,
)
from jaxtrain.nn.moe.selections import ClusterDropout, GroupLimited, Selection
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


NOISY = Jitter(epsilon=0.1, router=InputDropout(router=ProductKeys(grid=(2, 5), holes=(1, 8), beam=2)))
ROUTED = (  # the mixtures of a pattern
    dataclasses.replace(
        MIXTURE,
        router=Stable(vocab_size=64, switch_step=2, width=8, router=NOISY),
        selection=ClusterDropout(clusters=2, rate=0.5),
        balances=(ClusterLoss(clusters=2, coefficient=0.1), LoadLoss(coefficient=0.1), ExcessLoss(coefficient=0.1)),
    ),
    dataclasses.replace(
        MIXTURE,
        zero_experts=2,
        router=ByTask(tasks=2),
        selection=GroupLimited(groups=5, kept=2),
        balances=(TargetBias(rate=0.1, per_token=1.5), ZLoss(coefficient=1e-3), MutualInformation(coefficient=0.1)),
    ),
)
ELSEWHERE = {  # and where; tokens and tasks come to them as to those above
    "BySkills": "test_selections.py",
    "Equal": "test_selections.py",
    "ExpertChoice": "test_moe_dispatch.py",
    "Fixed": "test_task_network.py",
    "Hash": "test_selections.py",
    "Sigmoid": "test_stable_router.py",
}


def test_the_loss_is_that_of_one_device_with_every_router_selection_and_balance():
    """In a pipeline whose stages have experts and shards on devices of their own."""
    block = variant().pattern[0]
    config = variant(pattern=tuple(dataclasses.replace(block, mlp=mixture) for mixture in ROUTED))
    desired = same_loss.losses(MeshConfig(), config=config, dropout=0.0, devices=jax.devices()[:1], steps=4)
    found = same_loss.losses(
        MeshConfig(stage=2, fsdp=2, expert=2),
        gradients=Pipelined(microbatches=4, schedule=ZBH1()),
        config=config,
        dropout=0.0,
        steps=4,
    )
    assert_close(np.array(found), np.array(desired), SAME_LOSS_ON_ANY_MESH)


@pytest.mark.parametrize("kind", [Router, Selection, Balance], ids=lambda kind: kind.__name__)
def test_no_router_selection_or_balance_is_left_out(kind):
    used = {name for text in map(repr, (*ROUTED, MIXTURE)) for name in re.findall(r"(\w+)\(", text)}
    found = {name for name, cls in subclasses(kind).items() if cls.__module__.startswith("jaxtrain.")}
    assert found - ELSEWHERE.keys() <= used
