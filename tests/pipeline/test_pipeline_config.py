"""A pipeline in a configuration: one key for it, one for its schedule."""

import pytest

from jaxtrain.cli.config_file import load
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.train.gradients.pipelined import Pipelined

ON_TWO_STAGES = ["mesh.stage=2", "gradients=@Pipelined(microbatches=4)"]


@pytest.mark.parametrize(
    ("changes", "remarks"),
    [
        ([], []),
        (
            ["model.repeats=10", "model.vocab_size=322"],
            [
                "model.repeats=10 is not divisible by mesh.stage=4, so devices along mesh.stage=4 hold the same "
                "of it: parameters, gradients and moments; nearest that is split 8 or 12",
                "model.vocab_size=322 is not divisible by mesh.stage=4, so devices along mesh.stage=4 hold the same "
                "of it: parameters, gradients and moments; nearest that is split 320 or 324",
            ],
        ),
        (
            ["mesh.stage=2", "mesh.tensor=2", "model.vocab_size=322"],
            [
                "model.vocab_size=322 is not divisible by mesh.stage=2 x mesh.tensor=2, so devices along mesh.stage=2 "
                "hold the same of it: parameters, gradients and moments; nearest that is split 320 or 324",
            ],
        ),
    ],
)
def test_a_run_says_what_its_stages_hold_whole(changes, remarks):
    config = load("configs/pipeline_tiny.gin", changes).config
    assert sorted(config.remarks(4)) == remarks
    config.check_devices(4)


@pytest.mark.parametrize(
    ("file", "overrides", "desired"),
    [
        ("quickstart", ON_TWO_STAGES, Pipelined(schedule=PairedInterleaved(), microbatches=4)),
        ("pipeline_tiny", [], Pipelined(schedule=PairedInterleaved(), microbatches=8)),
        ("pipeline_tiny", ["gradients.schedule=@ZBH1()"], Pipelined(schedule=ZBH1(), microbatches=8)),
    ],
)
def test_a_run_takes_the_default_schedule_or_another_by_one_key(file, overrides, desired):
    config = load(f"configs/{file}.gin", overrides).config
    assert config.gradients == desired
    config.gradients.check(config.mesh.stage, config.model)
