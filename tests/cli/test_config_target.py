"""Nothing that a configuration names is called before it is known to make what the key takes."""

import pytest
from messages import refused
from toy.config import RunConfig
from toy.layers import ModelConfig
from toy.traps import CALLED

from jaxtrain.cli.config_file import load

FILE = """\
from __gin__ import dynamic_registration
from toy import config
from toy import layers
from toy import traps
config.RunConfig.model = {}
config.RunConfig.phases = ()
"""
NAMES = ("Trap", "unannotated", "plain", "of_another_kind", "with_default", "unresolved", "callable_object", "field")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    CALLED.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(FILE.format("@layers.tiny()"))
    yield tmp_path
    assert CALLED == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["@traps.{}()", "(@traps.{}(),)", "%model"])
def test_a_file_calls_nothing_that_does_not_make_what_the_key_takes(folder, name, value):
    macro = f"model = @traps.{name}()\n" if value == "%model" else ""
    (folder / "run.gin").write_text(FILE.format(value.format(name)) + macro)
    with pytest.raises(ValueError, match="^run.gin:[57]: "):
        load("run.gin", root=RunConfig)


@pytest.mark.parametrize("name", NAMES)
def test_an_override_calls_nothing_that_does_not_make_what_the_key_takes(name):
    for override in (f"model=@toy.traps.{name}()", f"model=(@toy.traps.{name}(),)", f"phases=(@toy.traps.{name}(),)"):
        if (name, override[:6]) != ("of_another_kind", "phases"):
            with pytest.raises(ValueError, match="^--set "):
                load("base.gin", [override], root=RunConfig)


def test_a_value_that_another_file_replaces_is_not_called(folder):
    (folder / "old.gin").write_text(FILE.format("@traps.of_another_kind()"))
    (folder / "new.gin").write_text(
        "include 'old.gin'\n" + FILE.format("@layers.tiny()").replace("phases = ()", "clip = 2")
    )
    assert load("new.gin", root=RunConfig).config.clip == 2.0


def test_a_preset_may_say_in_text_what_it_makes(folder):
    (folder / "run.gin").write_text(FILE.format("@traps.annotated_in_text()"))
    assert load("run.gin", root=RunConfig).config.model == ModelConfig(d_model=3)


def test_a_preset_that_makes_something_else_than_it_says_is_refused(folder):
    (folder / "run.gin").write_text(FILE.format("@traps.lying()"))
    with refused(ValueError, "run.gin:5", "model=@layers.NormConfig()", "ModelConfig"):
        load("run.gin", root=RunConfig)


def test_a_protocol_takes_only_what_has_its_members(folder):
    (folder / "run.gin").write_text(
        FILE.format("@layers.tiny()") + "config.RunConfig.optimizer = @layers.NormConfig()\n"
    )
    with refused(ValueError, "run.gin:7", "optimizer=@layers.NormConfig()", "Optimizer"):
        load("run.gin", root=RunConfig)
