"""A configuration as a Python file: the same keys, the same errors of one line, recorded as a config.gin."""

import sys

import pytest
from toy.config import Phase, RunConfig
from toy.layers import tiny
from toy.optim.lion import Lion

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_text import render

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
    with pytest.raises(ValueError, match="mine is code in the folder .* let it run: --import-from"):
        load("config.gin", root=RunConfig)
    again = load("config.gin", root=RunConfig, import_from=["."]).config
    assert type(again.optimizer) is sys.modules["mine"].Mine


WRONG = {
    "    return RunConfig(": ("    return tuple(", r"mine.py:12: TypeError: tuple\(\) takes no keyword arguments"),
    "    return ": ("    ", "mine.py: config\\(\\) returns a NoneType; make it return a config.RunConfig"),
    "def config():": (
        "def configure():",
        "mine.py has no function `config\\(\\)` without arguments; write one that re",
    ),
    "config():": ("config(seed):", "mine.py has no function `config\\(\\)` without arguments"),
    "steps=10": ("steps='a'", r"mine.py:config\(\): phases\[0\].steps='a' must be int, not str"),
    "from toy.config": ("from toy.confic", "mine.py: mine cannot be imported: ModuleNotFoundError: No module named"),
    "(frozen=True)": ("(frozen=True", "mine.py: mine cannot be imported: SyntaxError: "),
    "optimizer=Lion(b1=0.3)": ("optimizer=Lion", r"mine.py:config\(\): optimizer="),
}


@pytest.mark.parametrize(("written", "instead", "message"), [(key, *value) for key, value in WRONG.items()])
def test_what_is_no_configuration_is_refused_with_its_place(folder, written, instead, message):
    assert written in TEXT
    (folder / "mine.py").write_text(TEXT.replace(written, instead))
    with pytest.raises(ValueError, match=message):
        load("mine.py", root=RunConfig)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-run.py", "my-run.py: give the file the name of a module, letters, digits and _ alone"),
        ("random.py", r"random.py: Python has another module 'random', .*random.py; give the file another name"),
        ("absent.py", "there is no configuration file 'absent.py'; the nearest valid name is 'mine.py'"),
    ],
)
def test_a_file_that_is_no_module_of_its_own_is_refused(folder, name, message):
    if name != "absent.py":
        (folder / name).write_text(TEXT)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(name, root=RunConfig)
