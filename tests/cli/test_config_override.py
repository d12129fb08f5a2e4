"""`--set path=value` changes what a file made, by path."""

import dataclasses

import pytest
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
    with pytest.raises(ValueError, match=r"run.gin:5: model \(layers.ModelConfig\): heads=3: must divide d_model=64"):
        load(path, ["model.mixers[0].heads=3"], root=RunConfig)
    assert load(path, ["model.mixers[0].heads=3", "model.d_model=9"], root=RunConfig).config.model.d_model == 9


def test_override_may_supply_what_the_file_left_out(path):
    path.write_text(TEXT.replace("  d_model = 64\n", ""))
    assert load(path, ["model.d_model=64"], root=RunConfig).config == BASE


ERRORS = {
    "model.d_modle=3": "--set model.d_modle=3: layers.ModelConfig has no key 'd_modle'; the nearest valid name is "
    "'d_model'",
    "modle.d_model=3": "--set modle.d_model=3: config.RunConfig has no key 'modle'; the nearest valid name is 'model'",
    "model.d_model=abc": "--set: model.d_model='abc' must be int, not str",
    "model.d_model=1.5": "--set: model.d_model=1.5 must be int, not float",
    "model.tied=true": "--set: model.tied='true' must be bool, not str",
    "name=3": "--set: name=3 must be str, not int",
    "clip={[]: 1}": "--set: clip='{[]: 1}' must be float | None, not str",
    "model=3": "--set model=3: must be ModelConfig, not int; a key below it that takes such a value is model.d_model",
    "optimizer.schedule=3": "--set optimizer.schedule=3: must be Schedule, not int; a key below it that takes such a "
    "value is optimizer.schedule.value",
    "adam.Constant.value=1": "--set adam.Constant.value=1: in --set a key is its place in the tree, here "
    "optimizer.schedule.value; see jaxtrain config show",
    "phases.Phase.steps=1.5": "in --set a key is its place in the tree, here phases[0].steps or phases[1].steps; see "
    "jaxtrain config show",
    "Phase.stesp=3": "a key is its place in the tree, here phases[0].steps or phases[1].steps; see jaxtrain config "
    "show",
    "RunConfig.phases[0].steps=1": "a key is its place in the tree, here phases[0].steps; see jaxtrain config show",
    "Adam=3": "a key is its place in the tree, here optimizer; see jaxtrain config show",
    "lion.Lion.b1=0.5": "a key is its place in the tree, such as model.d_model; see jaxtrain config show",
    "phases[2].steps=1": "--set phases[2].steps=1: phases has no entry '2'; it has 2, counted from 0",
    "phases.first.steps=1": "--set phases.first.steps=1: phases has no entry 'first'; it has 2, counted from 0",
    "name.first=1": "--set name.first=1: name is a plain value, there is no 'first' below it; set it as a whole",
    "seeds[0]=1": "--set seeds[0]=1: seeds is a plain value, there is no '0' below it; set it as a whole",
    "name": "--set name: write it as path=value",
    "=3": "--set =3: write it as path=value",
    "optimizer=@Lyon()": "--set optimizer=@Lyon(): there is no class 'Lyon'; the nearest valid name is 'Lion'",
    "optimizer=@toy.optim.lion.Loin()": "--set optimizer=@toy.optim.lion.Loin(): there is no class "
    "'toy.optim.lion.Loin'; the nearest valid name is 'Lion'",
    "optimizer=@Lion(b2=1)": "--set optimizer=@Lion(b2=1): lion.Lion has no key 'b2'; the nearest valid name is 'b1'",
    "optimizer=@Lion(0.5)": "--set optimizer=@Lion(0.5): Lion(0.5) is neither a literal nor @Name(key=value, ...)",
    "optimizer=@Lion(**{'b1': 1})": "--set optimizer=@Lion(**{'b1': 1}): **{'b1': 1} cannot be read; write "
    "@Name(key=value, ...)",
    "optimizer=@Lion(": "--set optimizer=@Lion(: cannot be read; write @Name(key=value, ...)",
    "optimizer=@Lion(b1=1, b1=2)": "--set optimizer=@Lion(b1=1, b1=2): "
    "lion.Lion has two values for 'b1'; remove one of them",
    "model.norm=@AttentionConfig(heads=2)": "--set model.norm=@AttentionConfig(heads=2): "
    "model.norm=@layers.AttentionConfig() must be NormConfig",
    "model.norm=@NormConfig(kind=batch)": "--set: model.norm.kind='batch' must be Literal['rms', 'layer'], not str",
    "model.mixers[0]=@AttentionConfig()": "--set: model.mixers[0].heads is missing: bind layers.AttentionConfig.heads, "
    "or give --set model.mixers[0].heads=...",
    "model=@tyny()": "--set model=@tyny(): there is no class 'tyny'; the nearest valid name is 'tiny'",
    "model=@tiny(width=3)": "--set model=@tiny(width=3): layers.tiny is a function; it takes no keys",
    "model=@toy.layers.sized()": "toy.layers.sized is neither a dataclass nor a function of no arguments that makes "
    "one and says so, `def sized() -> Class`",
    # What Python takes for something else, or does not survive.
    "clip=1e999": "--set clip=1e999: no float holds 1e999: write 0, or a number between 2.3e-308 and 1.7e308",
    "clip=-1e999": "no float holds 1e999: write 0, or a number between 2.3e-308 and 1.7e308",
    "clip=3e-3000": "--set clip=3e-3000: no float holds 3e-3000: write 0, or a number between 2.3e-308 and 1.7e308",
    "clip=1e-320": "no float holds 1e-320: write 0, or a number between 2.3e-308 and 1.7e308",
    f"clip={'9' * 400}": f"{'9' * 60}... (400 characters): write 0, or a number between 2.3e-308 and 1.7e308",
    f"name={'9' * 5000}": f"{'9' * 60}... (5000 characters): write 0, or a number between 2.3e-308 and 1.7e308",
    f"clip=0x{'f' * 5000}": "(5002 characters): write 0, or a number between 2.3e-308 and 1.7e308",
    "optimizer=@Lion(b1=1e999)": "no float holds 1e999: write 0, or a number between 2.3e-308 and 1.7e308",
    "seeds=(1, 1e999)": "no float holds 1e999: write 0, or a number between 2.3e-308 and 1.7e308",
    "clip=inf": "--set: clip='inf' must be float | None, not str",
    "clip=1j": "--set: clip=1j must be float | None, not complex",
    f"clip={'-' * 4000}1": "(4006 characters): is nested too deeply",
    f"clip={'1+' * 9000}1": "(18006 characters): is nested too deeply",
    f"optimizer=@Lion(b1={'-' * 4000}1)": "(4021 characters): is nested too deeply",
    f"optimizer=@{'a.' * 3000}b()": "(6014 characters): is nested too deeply",
    "name='abc": "--set name='abc: begins with a quote and is no string; see to its quotes and backslashes",
    r"name='\e'": r"--set name='\e': begins with a quote and is no string; see to its quotes and backslashes",
    "name=a\0b": "--set name=a\0b: holds a zero byte",
    "name=\udcff": r"--set name=\udcff: holds '\udcff', which is no character of UTF-8",
    r"name='\ud800'": r"--set: name='\ud800' holds '\ud800', which is no character of UTF-8",
    "optimizer=@Lion(\udcff=1)": r"holds '\udcff', which is no character of UTF-8",
    "phases[-1].steps=1": "config.RunConfig has no key 'phases[-1]'; the nearest valid name is 'phases'",
    "phases[99999999999999999999].steps=1": "phases has no entry '99999999999999999999'; it has 2, counted from 0",
    f"phases.{'9' * 5000}=1": f"phases has no entry '{'9' * 60}... (5000 characters)'; it has 2, counted from 0",
    "phases[٣].steps=1": "config.RunConfig has no key 'phases[٣]'; the nearest valid name is 'phases'",
    "phases.².steps=1": "phases has no entry '²'; it has 2, counted from 0",
    f"Phase.{'9' * 5000}=1": "in --set a key is its place in the tree, here phases[0].steps or phases[1].steps; see "
    "jaxtrain config show",
    "...=1": "config.RunConfig has no key ''; the nearest valid name is 'seeds'",
    "phases..steps=1": "phases has no entry ''; it has 2, counted from 0",
    "optimizer=@": "cannot be read; write @Name(key=value, ...)",
    "optimizer=@()": "--set: optimizer=() must be Optimizer, not tuple",
    "optimizer=@.Lion()": "cannot be read; write @Name(key=value, ...)",
    "optimizer=@os.path.join()": "os.path is a module of Python's own, in which there is no configuration",
    "optimizer=@a['b.c']()": "there is no class \"a['b.c']\"; the nearest valid name is 'Adam'",
    "phases=@Phase(steps=1)": "phases=@config.Phase() must be tuple[toy.config.Phase, ...]",
    "phases=(@toy.optim.lion.Lion(), @Phase(steps=1))": "phases[0]=@lion.Lion() must be Phase",
    "model=(@tiny(),)": "model[0]=@layers.tiny() is in a tuple, where none can be",
}


@pytest.mark.parametrize("override, message", ERRORS.items(), ids=[ascii(key)[:60] for key in ERRORS])
def test_wrong_override_is_refused_by_path_with_the_nearest_name(path, override, message):
    with pytest.raises(ValueError) as caught:
        load(path, [override], root=RunConfig)
    assert str(caught.value).endswith(message) and "\n" not in str(caught.value)


def test_key_below_a_node_nobody_set_says_to_set_it_first(path):
    path.write_text(TEXT.replace("  model = @layers.ModelConfig()\n", "").split("layers.ModelConfig:")[0])
    with pytest.raises(ValueError, match=r"model is not set yet; set it first, --set model='@...\(\)'"):
        load(path, ["model.tied=False"], root=RunConfig)
