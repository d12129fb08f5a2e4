"""The `jaxtrain` command: `config show` and `config diff`, lazy imports, and how errors end."""

import subprocess
import sys

import pytest
import toy.config
from messages import check
from toy.config import RunConfig

from jaxtrain.cli import config as config_command
from jaxtrain.cli.main import COMMANDS, main
from jaxtrain.record.text import render

TEXT = """\
from __gin__ import dynamic_registration
from toy import config
from toy import layers
config.RunConfig.model = @layers.tiny()
config.RunConfig.phases = (@config.Phase(),)
config.Phase.steps = 10
"""


@pytest.fixture(autouse=True)
def run_file(tmp_path, monkeypatch):
    """A file of the toy tree, which stands in for the real one."""
    module = type(sys)("jaxtrain.config")
    module.TrainConfig = RunConfig
    monkeypatch.setitem(sys.modules, "jaxtrain.config", module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.gin").write_text(TEXT)
    return "run.gin"


def test_show_prints_each_key_on_one_line_however_narrow(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert main(["config", "show", "run.gin", "--set", "name=[red]", "--set", "phases[0].length=7"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["phases[0].steps", "10", "run.gin:6"] in lines
    assert ["phases[0].length", "7", "--set"] in lines
    assert ["name", "'[red]'", "--set"] in lines
    assert ["model.norm.epsilon", "1e-06", "run.gin:4"] in lines


def test_diff_prints_differing_paths(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.gin").write_text(TEXT.replace("10", "20"))
    assert main(["config", "diff", "run.gin", "run", "--set", "clip=None"]) == 0
    assert capsys.readouterr().out.splitlines() == ["phases[0].steps: 10 -> 20", "clip: 1.0 -> None"]
    assert main(["config", "diff", "run.gin", "run.gin"]) == 0
    assert capsys.readouterr().out == "no differences\n"


@pytest.mark.parametrize(
    "arguments, facts",
    [(["run.gin", "--set", "nam=x"], ("--set nam=x", "'nam'", "'name'")), (["rum.gin"], ("'rum.gin'", "'run.gin'"))],
    ids=["key", "file"],
)
def test_user_error_is_one_line_and_exit_code_2(capsys, arguments, facts):
    assert main(["config", "show", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("jaxtrain: error: ") and captured.err.count("\n") == 1 and captured.out == ""
    check(captured.err, *facts)


def test_message_of_several_lines_ends_on_one(capsys, monkeypatch):
    monkeypatch.setattr(config_command, "run", _raise(ValueError("first:\n\n  second\nthird")))
    assert main(["config", "show", "run.gin"]) == 2
    assert capsys.readouterr().err == "jaxtrain: error: first: second; third\n"


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_traceback_is_printed_on_request_wherever_it_is_asked(capsys, position):
    arguments = ["config", "show", "rum.gin"]
    assert main([*arguments[:position], "--traceback", *arguments[position:]]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("jaxtrain: error: there is no configuration file")


def test_unexpected_exception_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(config_command, "run", _raise(KeyError("bug")))
    with pytest.raises(KeyError, match="bug"):
        main(["config", "show", "run.gin"])


def test_unsupported_request_is_a_user_error(capsys, monkeypatch):
    monkeypatch.setattr(config_command, "run", _raise(NotImplementedError("family 'x' is unsupported")))
    assert main(["config", "show", "run.gin"]) == 2
    assert capsys.readouterr().err == "jaxtrain: error: family 'x' is unsupported\n"


def _raise(error: Exception):
    def run(arguments):
        raise error

    return run


def test_help_lists_every_command_and_imports_none():
    script = "import sys; from jaxtrain.cli.main import main\ntry: main(['--help'])\nexcept SystemExit as e: " + (
        "sys.exit(e.code or (3 if {'jax', 'gin', 'rich'} & set(sys.modules) else 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_saved_configuration_alone_reproduces_the_run(tmp_path, capsys):
    from jaxtrain.cli.config_file import load

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.gin").write_text(render(load("run.gin", ["clip=0.5"]).config))
    assert main(["config", "diff", "run", "run.gin", "--set", "clip=0.5"]) == 0
    assert capsys.readouterr().out == "no differences\n"
    assert load("run").config == toy.config.RunConfig(
        model=toy.config.ModelConfig(d_model=8, mixers=load("run.gin").config.model.mixers),
        phases=(toy.config.Phase(steps=10),),
        clip=0.5,
    )
