"""The command line before a command runs: helps, examples, versions, and nothing slow imported."""

import argparse
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from jaxtrain.cli.main import main, parser


def parsers(above: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of all commands and of their actions, but not those above them."""
    below = [action for action in above._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for action in below for child in action.choices.values() for leaf in parsers(child)] or [above]


COMMANDS = {found.prog.removeprefix("jaxtrain "): found for found in parsers(parser())}


def test_every_command_is_looked_at():
    assert len(COMMANDS) > 11 and {"train", "schedule compare", "config options", "tokenizer train"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_an_example_that_can_be_typed(name):
    *_, heading, example = COMMANDS[name].format_help().splitlines()
    assert heading == "example:" and example.startswith(f"  jaxtrain {name} ")
    parsed = vars(parser().parse_args(shlex.split(example)[1:]))
    assert " ".join(filter(None, (parsed["command"], parsed.get("action")))) == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_says_each_default(name):
    text = " ".join(COMMANDS[name].format_help().split())
    for action in COMMANDS[name]._actions:
        optional = action.option_strings and action.nargs != 0 and not action.required
        if optional and not isinstance(action, argparse._AppendAction):  # what may be repeated begins empty
            said = "by default" if action.default is None else f"(default: {action.default})"
            assert said in action.help or f"{action.help} {said}" in text, action.option_strings


def test_versions_are_those_of_what_is_installed(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    python = ".".join(map(str, sys.version_info[:3]))
    assert capsys.readouterr().out == f"jaxtrain {version('jaxtrain')}, jax {version('jax')}, Python {python}\n"


def test_what_is_wrong_on_the_command_line_or_cannot_be_parsed_is_said_without_jax(tmp_path):
    (tmp_path / "bad.gin").write_text("from jaxtrain import config\nconfig.TrainConfig.seed = = 1\n")
    calls = ["--help", "train --help", "train a.gin --runs b", "config show no.gin", "config show bad.gin"]
    script = (
        "import sys; from jaxtrain.cli.main import main\n"
        f"for call in {calls}:\n"
        "    try: print(call, main(call.split()))\n"
        "    except SystemExit as done: print(call, done.code)\n"
        "print({'jax', 'flax', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "set()" and [f"{call} {0 if '--help' in call else 2}" in lines for call in calls] == [True] * 5
    errors = done.stderr.splitlines()
    assert [error.startswith("jaxtrain: error: ") for error in errors] == [True] * 3
    assert "'no.gin'" in errors[1] and "bad.gin:2" in errors[2]
