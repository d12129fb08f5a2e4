"""A pipeline in a configuration: one key for it, one for its schedule."""

import pytest

from jaxtrain.cli.config_file import load
from jaxtrain.pipeline.schedules.paired_interleaved import PairedInterleaved
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.train.pipelined import Pipelined

ON_TWO_STAGES = ["mesh.stage=2", "gradients=@Pipelined(microbatches=4)"]


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
