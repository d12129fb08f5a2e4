"""`--set path=value` changes what a file made, by path."""

import dataclasses

import pytest
from messages import refused
from toy.config import Phase, RunConfig
from toy.layers import AttentionConfig, ModelConfig, NormConfig, tiny
from toy.optim.adam import Adam, Constant
from toy.optim.lion import Lion

from jaxtrain.cli.config_file import load

TEXT = """\
from __gin__ import dynamic_registration
from toy import config
from toy import layers
config.RunConfig:
  model = @layers.ModelConfig()
  phases = (@config.Phase(), @config.Phase())
config.Phase.steps = 10
layers.ModelConfig:
  d_model = 64
  mixers = (@layers.AttentionConfig(),)
layers.AttentionConfig.heads = 4
"""
BASE = RunConfig(
    model=ModelConfig(d_model=64, mixers=(AttentionConfig(heads=4),)), phases=(Phase(steps=10), Phase(steps=10))
)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run.gin").write_text(TEXT)
    return tmp_path / "run.gin"


CHANGES = {
    "name=abc": {"name": "abc"},
    "name='a b'": {"name": "a b"},
    "name=gs://bucket/a@b=c": {"name": "gs://bucket/a@b=c"},
    "note=None": {"note": None},
    "clip=2": {"clip": 2.0},
    " clip = None ": {"clip": None},
    "seeds=[1, 2]": {"seeds": (1, 2)},
    "phases[0].steps=100": {"phases": (Phase(steps=100), Phase(steps=10))},
    "phases.1.length=5": {"phases": (Phase(steps=10), Phase(steps=10, length=5))},
    "phases[1]=@Phase(steps=1)": {"phases": (Phase(steps=10), Phase(steps=1))},
    "phases=(@Phase(steps=1), @toy.config.Phase(steps=2))": {"phases": (Phase(steps=1), Phase(steps=2))},
    "phases=[@Phase(steps=1)]": {"phases": (Phase(steps=1),)},
    "optimizer=@Adam()": {"optimizer": Adam()},
    "optimizer=@Lion()": {"optimizer": Lion()},
    "optimizer=@Lion": {"optimizer": Lion()},
    "optimizer=Lion": {"optimizer": Lion()},
    "optimizer=Lion(b1=0.95, schedule=Constant)": {"optimizer": Lion(b1=0.95)},
    "name=Lion": {"name": "Lion"},
    "optimizer=@lion.Lion(b1=0.95)": {"optimizer": Lion(b1=0.95)},
    "optimizer=@toy.optim.lion.Lion(schedule=@Constant(value=1))": {"optimizer": Lion(schedule=Constant(value=1.0))},
    "optimizer.schedule.value=1e-4": {"optimizer": Adam(schedule=Constant(value=1e-4))},
    "model.norm=@NormConfig(kind=layer)": {"model": dataclasses.replace(BASE.model, norm=NormConfig(kind="layer"))},
    "model.norm=@NormConfig(kind='layer')": {"model": dataclasses.replace(BASE.model, norm=NormConfig(kind="layer"))},
    "model=@toy.layers.tiny()": {"model": tiny()},
    "model=@tiny()": {"model": tiny()},
}


@pytest.mark.parametrize("override, change", CHANGES.items(), ids=CHANGES.keys())
def test_override_changes_exactly_its_path(path, override, change):
    assert load(path, [override], root=RunConfig).config == dataclasses.replace(BASE, **change)


def test_later_overrides_win_and_reach_into_earlier_ones(path):
    config = load(path, ["optimizer=@Lion()", "optimizer.b1=0.5", "name=a", "name=b"], root=RunConfig).config
    assert config.optimizer == Lion(b1=0.5) and config.name == "b"


def test_overrides_valid_only_together_are_accepted_together(path):
    with refused(ValueError, "run.gin:5", "model (layers.ModelConfig)", "heads=3", "d_model=64"):
        load(path, ["model.mixers[0].heads=3"], root=RunConfig)
    assert load(path, ["model.mixers[0].heads=3", "model.d_model=9"], root=RunConfig).config.model.d_model == 9


def test_override_may_supply_what_the_file_left_out(path):
    path.write_text(TEXT.replace("  d_model = 64\n", ""))
    assert load(path, ["model.d_model=64"], root=RunConfig).config == BASE


ERRORS = {
    "model.d_modle=3": ("--set model.d_modle=3", "'d_model'"),
    "modle.d_model=3": ("--set modle.d_model=3", "'model'"),
    "model.d_model=abc": ("--set", "model.d_model='abc'", "int"),
    "model.d_model=1.5": ("--set", "model.d_model=1.5", "int"),
    "model.tied=true": ("--set", "model.tied='true'", "bool"),
    "name=3": ("--set", "name=3", "str"),
    "clip={[]: 1}": ("--set", "clip='{[]: 1}'", "float | None"),
    "model=3": ("--set model=3", "ModelConfig", "model.d_model"),
    "optimizer.schedule=3": ("--set optimizer.schedule=3", "Schedule", "optimizer.schedule.value"),
    "adam.Constant.value=1": ("--set adam.Constant.value=1", "optimizer.schedule.value"),
    "phases.Phase.steps=1.5": ("--set", "phases[0].steps", "phases[1].steps"),
    "Phase.stesp=3": ("phases[0].steps", "phases[1].steps"),
    "RunConfig.phases[0].steps=1": ("phases[0].steps",),
    "Adam=3": ("here optimizer",),
    "lion.Lion.b1=0.5": ("model.d_model",),
    "phases[2].steps=1": ("--set phases[2].steps=1", "'2'", "has 2", 0),
    "phases.first.steps=1": ("--set phases.first.steps=1", "'first'", "has 2", "0 Phase, 1 Phase"),
    "name.first=1": ("--set name.first=1", "'first'"),
    "seeds[0]=1": ("--set seeds[0]=1", "'0'"),
    "name": ("--set name", "path=value"),
    "=3": ("--set =3", "path=value"),
    "optimizer=@Lyon()": ("--set optimizer=@Lyon()", "'Lion'"),
    "optimizer=@toy.optim.lion.Loin()": ("--set optimizer=@toy.optim.lion.Loin()", "'Lion'"),
    "optimizer=@Lion(b2=1)": ("--set optimizer=@Lion(b2=1)", "'b2'", "schedule, b1"),
    "optimizer=@Lion(0.5)": ("--set optimizer=@Lion(0.5)", "@Name(key=value, ...)"),
    "optimizer=@Lion(**{'b1': 1})": ("--set optimizer=@Lion(**{'b1': 1})", "@Name(key=value, ...)"),
    "optimizer=@Lion(": ("--set optimizer=@Lion(", "@Name(key=value, ...)"),
    "optimizer=@Lion(b1=1, b1=2)": ("--set optimizer=@Lion(b1=1, b1=2)", "two values", "'b1'"),
    "model.norm=@AttentionConfig(heads=2)": (
        "--set model.norm=@AttentionConfig(heads=2)",
        "model.norm=@layers.AttentionConfig()",
        "NormConfig",
    ),
    "model.norm=@NormConfig(kind=batch)": ("--set", "model.norm.kind='batch'", "['rms', 'layer']"),
    "model.mixers[0]=@AttentionConfig()": ("--set model.mixers[0].heads", "layers.AttentionConfig.heads"),
    "model=@tyny()": ("--set model=@tyny()", "'tiny'"),
    "model=@tiny(width=3)": ("--set model=@tiny(width=3)", "layers.tiny", "function"),
    "model=@toy.layers.sized()": ("toy.layers.sized", "`def sized() -> Class`"),
    # What Python takes for something else, or does not survive.
    "clip=1e999": ("--set clip=1e999", 0, "2.3e-308", "1.7e308"),
    "clip=-1e999": ("1e999", 0, "2.3e-308", "1.7e308"),
    "clip=3e-3000": ("--set clip=3e-3000", 0, "2.3e-308", "1.7e308"),
    "clip=1e-320": ("1e-320", 0, "2.3e-308", "1.7e308"),
    f"clip={'9' * 400}": ("9" * 60 + "...", 400, 0, "2.3e-308", "1.7e308"),
    f"name={'9' * 5000}": ("9" * 60 + "...", 5000, 0, "2.3e-308", "1.7e308"),
    f"clip=0x{'f' * 5000}": (5002, 0, "2.3e-308", "1.7e308"),
    "optimizer=@Lion(b1=1e999)": ("1e999", 0, "2.3e-308", "1.7e308"),
    "seeds=(1, 1e999)": ("1e999", 0, "2.3e-308", "1.7e308"),
    "clip=inf": ("--set", "clip='inf'", "float | None"),
    "clip=1j": ("--set", "clip=1j", "float | None"),
    f"clip={'-' * 4000}1": (4006, "nested"),
    f"clip={'1+' * 9000}1": (18006, "nested"),
    f"optimizer=@Lion(b1={'-' * 4000}1)": (4021, "nested"),
    f"optimizer=@{'a.' * 3000}b()": (6014, "nested"),
    "name='abc": ("--set name='abc", "quote"),
    r"name='\e'": (r"--set name='\e'", "quote"),
    "name=a\0b": ("--set name=a\0b", "zero byte"),
    "name=\udcff": (r"--set name=\udcff", r"'\udcff'", "UTF-8"),
    r"name='\ud800'": ("--set", r"name='\ud800'", "UTF-8"),
    "optimizer=@Lion(\udcff=1)": (r"'\udcff'", "UTF-8"),
    "phases[-1].steps=1": ("config.RunConfig", "'phases[-1]'", "'phases'"),
    "phases[99999999999999999999].steps=1": ("phases", "'99999999999999999999'", "has 2", 0),
    f"phases.{'9' * 5000}=1": ("phases", "9" * 60 + "...", 5000, "has 2", 0),
    "phases[٣].steps=1": ("config.RunConfig", "'phases[٣]'", "'phases'"),
    "phases.².steps=1": ("phases", "'²'", "has 2", 0),
    f"Phase.{'9' * 5000}=1": ("--set", "phases[0] or phases[1];"),
    "...=1": ("config.RunConfig", "''"),
    "steps=1": ("'steps'", "'phases[0].steps'", "'phases[1].steps'"),
    "model.steps=1": ("layers.ModelConfig", "'phases[0].steps' of config.Phase"),
    "head=1": ("'head'", "'model.mixers[0].heads'"),
    "n_heads=1": ("'n_heads'", "'model.mixers[0].heads'"),
    "model.n_embd=1": ("'n_embd'", "'d_model'"),
    "phases..steps=1": ("phases", "''", "has 2", 0),
    "optimizer=@": ("cannot be read", "@Name(key=value, ...)"),
    "optimizer=@()": ("--set", "optimizer=()", "Optimizer"),
    "optimizer=@.Lion()": ("cannot be read", "@Name(key=value, ...)"),
    "optimizer=@os.path.join()": ("os.path",),
    "optimizer=@a['b.c']()": ("a['b.c']", "optimizer takes Adam, Lion"),
    "phases=@Phase(steps=1)": ("phases=@config.Phase()", "tuple[toy.config.Phase, ...]", "(@config.Phase(),)"),
    "phases=(@toy.optim.lion.Lion(), @Phase(steps=1))": ("phases[0]=@lion.Lion()", "Phase"),
    "model=(@tiny(),)": ("model[0]=@layers.tiny()", "tuple"),
}


@pytest.mark.parametrize("override, facts", ERRORS.items(), ids=[ascii(key)[:60] for key in ERRORS])
def test_wrong_override_is_refused_by_path_with_the_nearest_name(path, override, facts):
    with refused(ValueError, *facts) as caught:
        load(path, [override], root=RunConfig)
    assert "\n" not in str(caught.value)


def test_key_below_a_node_nobody_set_says_to_set_it_first(path):
    path.write_text(TEXT.replace("  model = @layers.ModelConfig()\n", "").split("layers.ModelConfig:")[0])
    with refused(ValueError, "model.tied", "--set model='@...()'"):
        load(path, ["model.tied=False"], root=RunConfig)
