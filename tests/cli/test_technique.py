"""What a class of somebody else has to be, to be named in a configuration."""

import sys
from pathlib import Path

import pytest
from messages import CLASSES, check, refusal

from jaxtrain.cli.main import main
from jaxtrain.train.hooks.base import Hook

QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart.gin")
HEAD = """\
from dataclasses import dataclass
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.schedules import Constant, Schedule
from jaxtrain.train.hooks import Hook
"""
RATE, BUILD = "    learning_rate: Schedule = Constant(peak=1.0)\n", "    def build(self, rate, axes): ...\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "outside":
            del sys.modules[name]


CASES = {
    "no build": (
        "(Optimizer)",
        RATE,
        ("optimizer (outside.Mine)", "`build`", "jaxtrain.optim.base.Optimizer"),
    ),
    "no field": (
        "(Optimizer)",
        BUILD,
        ("optimizer (outside.Mine)", "`learning_rate`", "jaxtrain.optim.base.Optimizer"),
    ),
    "two bases": (
        "(Optimizer, Schedule)",
        RATE + BUILD,
        ("Mine", "jaxtrain.optim.base.Optimizer", "jaxtrain.optim.schedules.base.Schedule"),
    ),
    "no base": ("", RATE + BUILD, ("optimizer=@outside.Mine()", "AdamW8bit")),
    "another base": ("(Hook)", RATE + BUILD, ("optimizer=@outside.Mine()", "AdamW8bit")),
}


@pytest.mark.parametrize(("bases", "body", "facts"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("way", ["gin", "set"])
def test_a_class_that_is_not_all_that_its_base_asks_for_is_refused_in_one_line(way, bases, body, facts, folder, capsys):
    (folder / "outside.py").write_text(f"{HEAD}@dataclass(frozen=True)\nclass Mine{bases}:\n{body}")
    (folder / "mine.gin").write_text(
        "from __gin__ import dynamic_registration\nimport outside\nfrom jaxtrain import config\n"
        f"include '{QUICKSTART}'\nconfig.TrainConfig.optimizer = @outside.Mine()\n"
    )
    words = ["mine.gin"] if way == "gin" else [QUICKSTART, "--set", "optimizer=@outside.Mine()"]
    line = refusal(capsys, "config", "show", *words, "--import-from", ".")
    assert line.startswith("mine.gin:" if way == "gin" else "--set"), "its place"
    check(line, *facts, varies=CLASSES if "must be" in line else None)


def test_a_field_that_would_take_a_property_of_the_base_for_its_default_is_refused():
    with pytest.raises(TypeError, match=r"Mine.validation_batches: give the field a default"):

        class Mine(Hook):
            validation_batches: int


@pytest.mark.parametrize("words", ["", "keep=@ChunkInput()"])
def test_an_earlier_key_may_be_set(words, folder, capsys):
    given = f"@Pipelined(microbatches=1, {words})" if words else "@Pipelined(microbatches=1)"
    more = [] if words else ["--set", "gradients.keep=@ChunkInput()"]
    assert main(["config", "show", QUICKSTART, "--set", f"gradients={given}", *more]) == 0
    assert "@chunk_input.ChunkInput()" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_is_read_although_its_classes_have_moved(folder, capsys):
    (folder / "config.gin").write_text(BEFORE)
    assert main(["config", "show", "config.gin"]) == 0
    shown = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert shown["model.pattern[0].mixer.positions.theta"] == "500.0" and shown["model.norm.epsilon"] == "1e-07"
    assert shown["model.pattern[0].mlp.hidden"] == "24" and shown["optimizer.b1"] == "0.5"
    assert (
        shown["gradients.microbatches"] == "2"
        and shown["gradients.residuals"] == "@repeat_residuals.RepeatResiduals()"
        and shown["writers[0].project"] == "'p'"
    )
    (folder / "config.gin").write_text(BEFORE.replace("optimizers.Lion", "optimizers.Lien"))
    line = refusal(capsys, "config", "show", "config.gin")
    check(line, "config.gin", "optimizers.Lien", "jaxtrain.optim.optimizers")


BEFORE = """\
from __gin__ import dynamic_registration
from jaxtrain import config
from jaxtrain.data import config as data_config
from jaxtrain.data import mixture
from jaxtrain.data.sources import standard_library
from jaxtrain.models import decoder
from jaxtrain.nn import attention
from jaxtrain.nn import block
from jaxtrain.nn import mlp
from jaxtrain.nn import norm
from jaxtrain.nn import remat
from jaxtrain.nn.rope import rope
from jaxtrain.optim import optimizers
from jaxtrain.optim import schedules
from jaxtrain.pipeline import keep
from jaxtrain.train import metrics
from jaxtrain.train import phases
from jaxtrain.train import pipelined
config.TrainConfig:
  model = @decoder.DecoderConfig()
  data = @data_config.DataConfig()
  optimizer = @optimizers.Lion()
  phases = (@phases.Phase(),)
  gradients = @pipelined.Pipelined()
  writers = (@metrics.WeightsAndBiases(),)
decoder.DecoderConfig:
  vocab_size = 320
  d_model = 16
  repeats = 1
  pattern = (@block.BlockConfig(),)
  max_length = 64
  norm = @norm.LayerNormConfig()
  remat = @remat.FullRemat()
norm.LayerNormConfig.epsilon = 1e-7
block.BlockConfig:
  mixer = @attention.AttentionConfig()
  mlp = @mlp.GatedMLPConfig()
attention.AttentionConfig:
  heads = 2
  kv_heads = 2
  head_dim = 8
  rope = @rope.RopeConfig()
  qk_norm = None
  joint_qk_norm = False
  bias = False
  output_bias = None
  window = None
  softcap = None
  scale = None
  sinks = False
  causal = True
  alibi = False
rope.RopeConfig:
  theta = 500.0
  scaling = None
  fraction = 1.0
  interleaved = False
mlp.GatedMLPConfig.hidden = 24
data_config.DataConfig.source = @mixture.Mixture()
mixture.Mixture.sources = (@mixture.Weighted(),)
mixture.Weighted.source = @standard_library.StandardLibrary()
optimizers.Lion:
  learning_rate = @schedules.Constant()
  b1 = 0.5
schedules.Constant.peak = 1e-3
phases.Phase:
  steps = 2
  batch_size = 2
  sequence_length = 16
pipelined.Pipelined.microbatches = 2
pipelined.Pipelined.keep = @keep.LayerValues()
metrics.WeightsAndBiases.project = 'p'
"""
