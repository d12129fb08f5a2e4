"""The promise of the project: a run has the same loss on any mesh, and its dropout too."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import same_loss
from devices import xla_flags
from patience import PATIENCE_SECONDS
from same_loss import DROPOUT, TWO_PROCESSES
from tolerances import SAME_LOSS_IN_CODES, SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.config_types import subclasses
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.sharing import SharedLayers, Sharing
from jaxtrain.nn.depth import Depth, ExpertChoiceRecursion, MixtureOfDepths, TokenChoiceRecursion
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.clamped_gated_mlp import ClampedGatedMLPConfig
from jaxtrain.nn.feed_forward.fast import FastFeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.feed_forward.sigmoid_gated import SigmoidGatedConfig
from jaxtrain.nn.feed_forward.weight_ensemble import WeightEnsembleConfig
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dora import DoRA
from jaxtrain.nn.linear.int8 import Int8
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.low_rank import LowRank
from jaxtrain.nn.linear.nf4 import NF4
from jaxtrain.nn.masks import Causal, SlidingWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.mixers.decay import StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.latent_attention import LatentAttentionConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.nn.moe.balances import RowLoss
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.trainable import Adapters, Everything
from jaxtrain.objectives.base import Objective
from jaxtrain.objectives.entropy import Entropy
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.sam import SAM
from jaxtrain.optim.schedules import Cosine
from jaxtrain.pipeline.schedules.chimera import Chimera
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.two_bp import TwoBP
from jaxtrain.train.gradients import Accumulate, Strategy
from jaxtrain.train.gradients.pipelined import Pipelined


@functools.cache
def _one_device() -> list[float]:
    return same_loss.losses(MeshConfig(), dropout=DROPOUT, devices=jax.devices()[:1])


MESHES = {
    "data 8": MeshConfig(data=8, fsdp=1),
    "fsdp 8": MeshConfig(fsdp=8),
    "data 2 x fsdp 2 x tensor 2": TWO_PROCESSES,
    "fsdp 2 x tensor 4": MeshConfig(fsdp=2, tensor=4),  # more than there are key-value heads
    "replica 2 x context 2 x tensor 2": MeshConfig(replica=2, fsdp=1, context=2, tensor=2),
}


def _close(found: list[float]) -> None:
    assert len(found) == same_loss.STEPS
    assert_close(np.array(found), np.array(_one_device()), SAME_LOSS_ON_ANY_MESH)


@pytest.mark.parametrize("name", MESHES)
def test_the_loss_of_every_step_is_that_of_one_device(name):
    """With dropout."""
    _close(same_loss.losses(MESHES[name], dropout=DROPOUT))


def test_the_loss_of_four_microbatches_is_that_of_the_whole_batch():
    _close(same_loss.losses(TWO_PROCESSES, dropout=DROPOUT, gradients=Accumulate(microbatches=4)))


@pytest.mark.parametrize("schedule", [PairedInterleaved(chunks_per_stage=1), TwoBP(schedule=Chimera())], ids=str)
def test_the_loss_of_a_pipeline_is_that_of_the_whole_batch(schedule):
    """With one copy of the weights on the stages that store them, and with two and W apart from B."""
    mesh = MeshConfig(stage=2, data=2, fsdp=1, tensor=2)
    _close(same_loss.losses(mesh, dropout=DROPOUT, gradients=Pipelined(schedule=schedule, microbatches=4)))


RATE = Cosine(peak=3e-3, warmup_steps=4)
HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 8}
NORM = RMSNormConfig(epsilon=1.0)  # with the usual one a rounding moves recurrent mixers by 1e-4 (docs/log.md)
RECURRENT = HEADS | {"value_dim": 12, "chunk_size": 16, "norm": NORM}
TECHNIQUES = {  # a new one is a line here
    MixerConfig: {
        "AttentionConfig": AttentionConfig(**HEADS, mask=SlidingWindow(window=9)),
        "DeltaRuleConfig": DeltaRuleConfig(**RECURRENT, decay=StepDecay()),
        "LatentAttentionConfig": LatentAttentionConfig(
            heads=4, latent=12, head_dim=8, rotated_dim=4, value_dim=8, query_latent=12
        ),
        "LinearAttentionConfig": LinearAttentionConfig(**RECURRENT),
    },
    Depth: {
        "ExpertChoiceRecursion": ExpertChoiceRecursion(capacities=(1.0, 0.5), shared_keys=True),
        "MixtureOfDepths": MixtureOfDepths(capacity=0.5, predictor=8),
        "TokenChoiceRecursion": TokenChoiceRecursion(times=2),
    },
    Sharing: {"SharedLayers": SharedLayers()},
    FeedForwardConfig: {
        "ClampedGatedMLPConfig": ClampedGatedMLPConfig(hidden=64, limit=1.0, bias=True),
        "FastFeedForwardConfig": FastFeedForwardConfig(levels=2, leaf=MLPConfig(hidden=16), hardening=0.1),
        "GatedMLPConfig": GatedMLPConfig(hidden=64),
        "MLPConfig": MLPConfig(hidden=64, bias=True),
        "SigmoidGatedConfig": SigmoidGatedConfig(layer=MLPConfig(hidden=64)),
        "MixtureConfig": MixtureConfig(
            experts=4, top_k=2, expert=GatedMLPConfig(hidden=32), balances=(RowLoss(coefficient=0.1),)
        ),
        "WeightEnsembleConfig": WeightEnsembleConfig(base=GatedMLPConfig(hidden=64), tasks=2),
    },
    LinearConfig: {
        "DoRA": DoRA(rank=4),
        "Int8": Int8(),
        "LoRA": LoRA(rank=4, base=NF4(block=16)),
        "LowRank": LowRank(rank=8),
    },
    Objective: {"Entropy": Entropy(), "NextToken": NextToken(z_loss=1e-3)},
    Optimizer: {
        "AdamW": AdamW(learning_rate=RATE),
        "SAM": SAM(optimizer=AdamW(learning_rate=RATE)),
    },
}
ELSEWHERE = {  # and where
    "Dense": "every other case",
    "Distill": "test_taught_run.py: it needs a teacher",
    "SharedBlocks": "as SharedLayers, with fewer norms",
    "NoFeedForward": "nothing to compute",
    "NoMixer": "nothing to compute",
    "NF4": "under LoRA",
    **{name: "tests/conformance/test_optimizer.py" for name in subclasses(Optimizer).keys() - {"AdamW", "SAM"}},
    "Some": "the linears that it chooses",
}
OWN = {name: own for cases in TECHNIQUES.values() for name, own in cases.items()}
TOGETHER = [  # of different keys, in one run
    ("AttentionConfig", "GatedMLPConfig", "NextToken", "AdamW"),
    ("DeltaRuleConfig", "MLPConfig"),
    ("LinearAttentionConfig", "MixtureConfig", "SharedLayers"),
    ("MixtureOfDepths", "FastFeedForwardConfig"),
    ("ExpertChoiceRecursion", "LowRank"),
    ("TokenChoiceRecursion", "SigmoidGatedConfig"),
    ("Entropy", "WeightEnsembleConfig"),
    ("LoRA", "DoRA"),  # in the mixer, and in the feed-forward layer
]
RUNS = [*TOGETHER, *((name,) for name in OWN if not any(name in names for names in TOGETHER))]


@functools.cache
def _run_with(
    names: tuple[str, ...], mesh: MeshConfig, devices: int = 8, gradients: Strategy = same_loss.WHOLE
) -> list[float]:
    def of(kind: type, otherwise):
        return next((OWN[name] for name in names if isinstance(OWN[name], kind)), otherwise)

    block = same_loss.DECODER.pattern[0]
    mixer, mlp = of(MixerConfig, block.mixer), of(FeedForwardConfig, block.mlp)
    if linears := [OWN[name] for name in names if isinstance(OWN[name], LinearConfig)]:
        mixer, mlp = dataclasses.replace(mixer, linear=linears[0]), dataclasses.replace(mlp, linear=linears[-1])
    depth = of(Depth, None)
    if depth:
        mixer = dataclasses.replace(mixer, mask=Causal())
    adapted = any(isinstance(linear, DoRA | LoRA) for linear in linears)
    return same_loss.losses(
        mesh,
        dropout=DROPOUT,
        devices=jax.devices()[:devices],
        gradients=gradients,
        config=dataclasses.replace(
            same_loss.DECODER,
            pattern=(dataclasses.replace(block, mixer=mixer, mlp=mlp, depth=depth),),
            sharing=of(Sharing, None),
            trainable=Adapters() if adapted else Everything(),
        ),
        objective=of(Objective, same_loss.OBJECTIVE),
        optimizer=of(Optimizer, same_loss.OPTIMIZER),
        steps=4,
    )


def _alone(names: tuple[str, ...]) -> list[float]:
    return _run_with(names, MeshConfig(fsdp=1), devices=1)


@pytest.mark.parametrize("names", RUNS, ids=" ".join)
def test_the_loss_with_every_technique_is_that_of_one_device(names):
    tolerance = SAME_LOSS_IN_CODES if "Int8" in names else SAME_LOSS_ON_ANY_MESH
    assert_close(np.array(_run_with(names, TWO_PROCESSES)), np.array(_alone(names)), tolerance)


@pytest.mark.parametrize(
    "names", [names for names in RUNS if OWN[names[0]] in TECHNIQUES[Depth].values()], ids=" ".join
)
def test_a_pipeline_chooses_the_tokens_that_one_device_chooses(names):
    """And leaves of trees are weighed in microbatches."""
    mesh = MeshConfig(stage=2, data=2, fsdp=2)
    found = _run_with(names, mesh, gradients=Pipelined(schedule=GPipe(), microbatches=2))
    assert_close(np.array(found), np.array(_alone(names)), SAME_LOSS_ON_ANY_MESH)


@pytest.mark.parametrize(
    ("mesh", "gradients"),
    [
        (TWO_PROCESSES, Accumulate(microbatches=2)),
        (MeshConfig(stage=2, data=2, fsdp=2), Pipelined(schedule=GPipe(), microbatches=2)),
    ],
    ids=["accumulated", "pipelined"],
)
def test_both_gradients_of_sam_go_through_the_strategy(mesh, gradients):
    found = same_loss.losses(mesh, dropout=DROPOUT, gradients=gradients, optimizer=OWN["SAM"], steps=4)
    assert_close(np.array(found), np.array(_alone(("SAM",))), SAME_LOSS_ON_ANY_MESH)


@pytest.mark.parametrize("kind", TECHNIQUES, ids=lambda kind: kind.__name__)
def test_no_technique_is_left_out(kind):
    found = {name for name, cls in subclasses(kind).items() if cls.__module__.startswith("jaxtrain.")}
    assert found - ELSEWHERE.keys() == set(TECHNIQUES[kind])


def test_the_run_learns_and_dropout_shows():
    with_dropout = _one_device()
    without = same_loss.losses(MeshConfig(), dropout=0.0, devices=jax.devices()[:1], steps=4)
    assert np.mean(with_dropout[-4:]) < np.mean(with_dropout[:4]) - 0.1
    assert np.max(np.abs(np.subtract(with_dropout[:4], without))) > 100 * SAME_LOSS_ON_ANY_MESH.absolute


def test_two_processes_of_four_devices_have_the_loss_of_one_device():
    """As scripts/launch_local.py starts them, at the default optimization level; one device runs as all tests do."""
    tests = Path(same_loss.__file__).parents[1]
    launcher = tests.parent / "scripts" / "launch_local.py"
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices=4, optimized=True),
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    command = [sys.executable, launcher, "2", sys.executable, same_loss.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"^(?:\[process 1\] )?(\[[\d.e, -]+\])$", done.stdout, re.MULTILINE)
    assert len(printed) == 2, done.stdout
    for found in printed:
        _close(json.loads(found))
