"""A configuration as a Python file: the same keys, the same errors of one line, recorded as a config.gin."""

import sys

import pytest
from messages import refused
from toy.config import Phase, RunConfig
from toy.layers import tiny
from toy.optim.lion import Lion

from jaxtrain.cli.config_file import load
from jaxtrain.record.text import render

TEXT = """\
from dataclasses import dataclass
from toy.config import Phase, RunConfig
from toy.layers import tiny
from toy.optim.lion import Lion

@dataclass(frozen=True)
class Mine:
    b1: float = 0.5
    def build(self): ...

def config():
    return RunConfig(model=tiny(), phases=(Phase(steps=10),), optimizer=Lion(b1=0.3))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a configuration; its modules are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    (tmp_path / "mine.py").write_text(TEXT)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_python_file_is_read_as_a_gin_file_is_overrides_and_all(folder):
    loaded = load("mine.py", ["phases[0].steps=20"], root=RunConfig)
    assert loaded.config == RunConfig(model=tiny(), phases=(Phase(steps=20),), optimizer=Lion(b1=0.3))
    assert loaded.origins["optimizer.b1"] == "mine.py:config()" and loaded.origins["phases[0].steps"] == "--set"
    assert load("mine.py", root=RunConfig).config.phases[0].steps == 10, "a second time in one process"


def test_its_own_classes_are_named_by_the_gin_file_that_a_run_records(folder):
    (folder / "mine.py").write_text(TEXT.replace("Lion(b1=0.3)", "Mine()"))
    config = load("mine.py", root=RunConfig).config
    (folder / "config.gin").write_text(render(config))
    assert "import mine\n" in render(config)
    assert load("config.gin", root=RunConfig).config == config, "the file has run already"
    del sys.modules["mine"]
    with refused(ValueError, "mine", folder, "--import-from"):
        load("config.gin", root=RunConfig)
    again = load("config.gin", root=RunConfig, import_from=["."]).config
    assert type(again.optimizer) is sys.modules["mine"].Mine


WRONG = {
    "    return RunConfig(": ("    return tuple(", ("mine.py:12", "TypeError")),
    "    return ": ("    ", ("mine.py", "NoneType", "config.RunConfig")),
    "def config():": (
        "def configure():",
        ("mine.py", "`config()`"),
    ),
    "config():": ("config(seed):", ("mine.py", "`config()`")),
    "steps=10": ("steps='a'", ("mine.py:config()", "phases[0].steps='a'", "int")),
    "from toy.config": ("from toy.confic", ("mine.py", "ModuleNotFoundError")),
    "(frozen=True)": ("(frozen=True", ("mine.py", "SyntaxError")),
    "optimizer=Lion(b1=0.3)": ("optimizer=Lion", ("mine.py:config()", "optimizer=")),
}


NOT_OURS = {"TypeError", "ModuleNotFoundError", "SyntaxError"}  # but of Python


@pytest.mark.parametrize("written", WRONG)
def test_what_is_no_configuration_is_refused_with_its_place(folder, written):
    instead, facts = WRONG[written]
    assert written in TEXT
    (folder / "mine.py").write_text(TEXT.replace(written, instead))
    python = {"<python>": "(?<=Error: ).*"} if NOT_OURS & set(facts) else None
    with refused(ValueError, *facts, varies=python):
        load("mine.py", root=RunConfig)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("my-run.py", ("my-run.py", "module")),
        ("random.py", ("random.py", "module 'random'")),
        ("mein.py", ("'mein.py'", "'mine.py'")),
    ],
    ids=["dash", "taken", "absent"],
)
def test_a_file_that_is_no_module_of_its_own_is_refused(folder, name, facts):
    if name != "mein.py":
        (folder / name).write_text(TEXT)
    with refused(
        (ValueError, FileNotFoundError),
        *facts,
        varies={"<file>": r"(?<='random', )\S*"} if name == "random.py" else None,
    ):
        load(name, root=RunConfig)
