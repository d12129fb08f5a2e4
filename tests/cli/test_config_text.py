"""Text made of a configuration: the file that reproduces it, the listing, the differences."""

import dataclasses
import math
import tempfile
from pathlib import Path

import gin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import refused
from toy.config import Phase, RunConfig
from toy.layers import AttentionConfig, IdentityConfig, ModelConfig, NormConfig
from toy.optim.adam import Adam, Constant
from toy.optim.lion import Lion

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_text import leaf_count, show
from jaxtrain.record.text import Difference, diff, render

CONFIG = RunConfig(
    model=ModelConfig(d_model=64, mixers=(AttentionConfig(heads=4, norm=NormConfig()), IdentityConfig())),
    phases=(Phase(steps=10), Phase(steps=5, length=4096)),
    note='it\'s "quoted"\n',
)
GOLDEN = """\
# Every key of a run, written by jaxtrain. It alone makes the same configuration.

from __gin__ import dynamic_registration
from toy import config
from toy import layers
from toy.optim import adam

config.RunConfig:
  model = @layers.ModelConfig()
  phases = (@phases_0/config.Phase(), @phases_1/config.Phase())
  optimizer = @adam.Adam()
  name = 'run'
  note = 'it\\'s "quoted"\\n'
  clip = 1.0
  seeds = (0,)

# model
layers.ModelConfig:
  d_model = 64
  mixers = (@layers.AttentionConfig(), @layers.IdentityConfig())
  norm = @model/norm/layers.NormConfig()
  tied = True

# model.mixers[0]
layers.AttentionConfig:
  heads = 4
  window = None
  norm = @model/mixers_0/norm/layers.NormConfig()

# model.mixers[0].norm
model/mixers_0/norm/layers.NormConfig:
  epsilon = 1e-06
  kind = 'rms'

# model.norm
model/norm/layers.NormConfig:
  epsilon = 1e-06
  kind = 'rms'

# phases[0]
phases_0/config.Phase:
  steps = 10
  length = None

# phases[1]
phases_1/config.Phase:
  steps = 5
  length = 4096

# optimizer
adam.Adam:
  schedule = @adam.Constant()
  betas = (0.9, 0.999)

# optimizer.schedule
adam.Constant:
  value = 0.001
"""

floats = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
norms = st.builds(NormConfig, epsilon=floats, kind=st.sampled_from(["rms", "layer"]))
mixers = st.builds(IdentityConfig) | st.builds(
    AttentionConfig,
    heads=st.sampled_from([1, 2, 4]),
    window=st.none() | st.integers(),
    norm=st.none() | norms,
)
models = st.builds(
    ModelConfig,
    d_model=st.sampled_from([-8, 4, 10**30]),
    mixers=st.lists(mixers, max_size=4).map(lambda items: tuple(items)),
    norm=norms,
    tied=st.booleans(),
).filter(lambda model: model.d_model % 4 == 0)
schedules = st.builds(Constant, value=floats)
optimizers = st.builds(Adam, schedule=schedules, betas=st.tuples(floats, floats)) | st.builds(Lion, schedule=schedules)
configs = st.builds(
    RunConfig,
    model=models,
    phases=st.lists(st.builds(Phase, steps=st.integers(), length=st.none() | st.integers()), max_size=3).map(tuple),
    optimizer=optimizers,
    name=st.text(),
    note=st.none() | st.text(),
    clip=st.none() | floats,
    seeds=st.lists(st.integers(), max_size=3).map(tuple),
)


def _reload(text: str) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.gin"
        path.write_text(text, encoding="utf-8", newline="")
        return load(path, root=RunConfig).config


@given(configs)
@settings(max_examples=100, deadline=None)
def test_rendered_configuration_loads_back_equal(config):
    assert _reload(render(config)) == config


@given(configs)
@settings(max_examples=20, deadline=None)
def test_gin_itself_reads_the_rendered_file_the_same(config):
    try:
        gin.parse_config(render(config))
        assert gin.get_configurable(RunConfig)() == config
    finally:
        gin.clear_config()


def test_rendered_text_is_golden():
    assert render(CONFIG) == GOLDEN


def test_rendering_is_stable_under_a_round_trip():
    assert render(_reload(GOLDEN)) == GOLDEN


def test_modules_of_the_same_name_get_names_apart(tmp_path, monkeypatch):
    source = (
        "from dataclasses import dataclass\nfrom {} import Phase as Other\n"
        "@dataclass(frozen=True)\nclass Phase:\n  inner: Other\n"
    )
    (tmp_path / "config.py").write_text(source.format("toy.config"))
    (tmp_path / "gin_twin").mkdir()
    (tmp_path / "gin_twin" / "gin.py").write_text(source.format("config"))
    monkeypatch.syspath_prepend(tmp_path)
    from gin_twin.gin import Other
    from gin_twin.gin import Phase as Outer

    value = Outer(Other(Phase(steps=3)))
    text = render(value)
    assert "import config as config" not in text and "from gin_twin import gin as gin_twin_gin\n" in text
    (tmp_path / "config.gin").write_text(text)
    assert load(tmp_path, root=Outer).config == value


@pytest.mark.parametrize("value", [float("nan"), math.inf, -math.inf, 5e-324, 10**400, b"bytes", 1j, {"a": 1}])
def test_value_without_a_literal_is_refused_by_path(value):
    with pytest.raises(ValueError, match="^model.norm.epsilon[=:]"):
        render(dataclasses.replace(CONFIG, model=ModelConfig(d_model=1, norm=NormConfig(epsilon=value))))


def test_class_local_to_a_function_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Local:
        value: int = 0

    with refused(ValueError, "optimizer", "Local"):
        render(dataclasses.replace(CONFIG, optimizer=Local()))


def test_leaf_count_counts_plain_values_only():
    assert leaf_count(NormConfig()) == 2
    assert leaf_count(IdentityConfig()) == 0
    assert leaf_count(CONFIG) == sum(" = " in line and "@" not in line for line in GOLDEN.splitlines()) == 18


def test_show_lists_every_path_with_value_and_origin(tmp_path):
    (tmp_path / "run.gin").write_text(GOLDEN)
    loaded = load(tmp_path / "run.gin", ["clip=3"], root=RunConfig)
    lines = [line.split() for line in str(show(loaded)).splitlines()]
    assert ["model", "@layers.ModelConfig()", f"{tmp_path}/run.gin:9"] in lines
    assert ["phases[1].length", "4096", f"{tmp_path}/run.gin:48"] in lines
    assert ["clip", "3.0", "--set"] in lines
    assert lines[-1] == ["18", "keys"]
    assert len(lines) - 1 == 18 + 9  # leaves and nodes below the root


def test_diff_lists_changed_added_and_removed_paths():
    other = dataclasses.replace(CONFIG, optimizer=Lion(), phases=CONFIG.phases[:1], note=None)
    assert diff(CONFIG, CONFIG) == []
    assert set(diff(CONFIG, other)) == {
        Difference("optimizer", "@adam.Adam()", "@lion.Lion()"),
        Difference("optimizer.betas", "(0.9, 0.999)", None),
        Difference("optimizer.b1", None, "0.9"),
        Difference("phases[1]", "@config.Phase()", None),
        Difference("phases[1].steps", "5", None),
        Difference("phases[1].length", "4096", None),
        Difference("note", repr(CONFIG.note), "None"),
    }
    assert str(diff(CONFIG, other)[-1]) == "optimizer.b1: (absent) -> 0.9"


def test_diff_tells_classes_with_no_fields_apart():
    mixers = (IdentityConfig(), IdentityConfig())
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, mixers=mixers))
    assert str(diff(CONFIG, other)[0]) == "model.mixers[0]: @layers.AttentionConfig() -> @layers.IdentityConfig()"
