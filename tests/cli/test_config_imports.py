"""Which modules a configuration may import: those of others run only where the user says so."""

import sys

import pytest
from messages import check
from toy.config import RunConfig

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.main import main
from jaxtrain.record.text import render

CODE = "RAN = True\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Lion:\n  b1: float = 0.5\n"
CODE += "  def build(self): ...\n"
FILE = """\
from __gin__ import dynamic_registration
from toy import config
from toy import layers
{}
config.RunConfig.model = @layers.tiny()
config.RunConfig.phases = ()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module, a package, a package without code and a configuration; forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    for name in ("mine.py", "ours/__init__.py", "ours/lion.py", "apart/lion.py", "runs/near.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(CODE)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder, line: str, name: str = "run.gin") -> str:
    (folder / name).write_text(FILE.format(line))
    return name


def refusal_of(path: str, overrides=(), import_from=()) -> str:
    before = set(sys.modules)
    with pytest.raises(ValueError) as caught:
        load(path, overrides, root=RunConfig, import_from=import_from)
    assert not {name for name in set(sys.modules) - before if vars(sys.modules[name]).get("RAN")}
    return str(caught.value)


LINES = {"import mine": "mine", "from ours import lion": "ours.lion", "from apart import lion": "apart.lion"}


@pytest.mark.parametrize("line, name", LINES.items())
@pytest.mark.parametrize("entry", [None, "", ".", "{folder}"])
def test_code_in_the_working_folder_is_refused_even_where_python_finds_it(folder, line, name, entry):
    if entry is not None:
        sys.path.insert(0, entry.format(folder=folder))
    where = "." if entry is None else folder  # as Python found it
    check(refusal_of(write(folder, line)), "run.gin:4", name, f"--import-from {where}")


@pytest.mark.parametrize("line, name", LINES.items())
def test_code_runs_from_a_folder_that_the_user_names(folder, line, name):
    bound = f"\nconfig.RunConfig.optimizer = @{line.split()[-1]}.Lion()"
    loaded = load(write(folder, line + bound), root=RunConfig, import_from=["."])
    assert type(loaded.config.optimizer) is sys.modules[name].Lion
    assert sys.path[-1] == str(folder), "before it, it would hide modules of others"


def test_a_folder_that_the_user_names_is_not_all_folders(folder):
    message = refusal_of(write(folder, "import near", "runs/run.gin"), import_from=["ours"])
    check(message, "near", "folder runs", "--import-from")
    check(refusal_of(write(folder, ""), import_from=["nowhere"]), "--import-from nowhere")


def test_an_override_imports_no_more_than_a_file(folder):
    sys.path.insert(0, "")
    path = write(folder, "")
    message = refusal_of(path, ["optimizer=@mine.Lion()"])
    check(message, "--set optimizer=@mine.Lion()", "mine is", folder, "--import-from")
    assert load(path, ["optimizer=@mine.Lion()"], root=RunConfig, import_from=[folder]).config.optimizer.b1 == 0.5


def test_a_name_beside_the_known_classes_wins_over_a_file_in_the_working_folder(folder):
    (folder / "lion.py").write_text(CODE)
    sys.path.insert(0, "")
    config = load(write(folder, ""), ["optimizer=@lion.Lion()"], root=RunConfig).config
    assert type(config.optimizer).__module__ == "toy.optim.lion" and "lion" not in sys.modules


def test_an_included_file_is_bounded_as_the_one_that_includes_it(folder):
    write(folder, "import near", "runs/base.gin")
    (folder / "run.gin").write_text("include 'runs/base.gin'\n")
    check(refusal_of("run.gin"), "runs/base.gin:4", "near", "folder runs")


@pytest.mark.parametrize("name", ["pdb", "os.path", "antigravity", "this"])
def test_modules_of_python_itself_are_not_imported(folder, name):
    check(refusal_of(write(folder, f"import {name}")), "run.gin:4", name, "Python's own")
    assert "antigravity" not in sys.modules and "this" not in sys.modules


def test_a_package_is_imported_and_not_run(folder):
    check(refusal_of(write(folder, "import pip.__main__")), "run.gin:4", "pip.__main__", "program")


def test_nothing_is_imported_of_a_file_that_cannot_be_read_to_its_end(folder):
    assert refusal_of(write(folder, "import mine\nx ="), import_from=["."]).startswith("run.gin:5: ")


def test_code_that_fails_is_refused_in_one_line(folder):
    for text, error in (("1 / 0", "ZeroDivisionError"), ("x =", "SyntaxError"), ("import zzz", "ModuleNotFoundError")):
        (folder / "broken.py").write_text(text)
        message = refusal_of(write(folder, "import broken"), import_from=["."])
        check(message, "run.gin:4", "broken", error, varies={"<python>": f"(?<={error}: ).*"})
        assert "\n" not in message


@pytest.fixture
def environment(folder):
    """An environment with an installed module, and a project that is linked into it by name."""
    site, project = folder / "env" / "site-packages", folder / "project"
    for path in (
        site / "installed.py",
        project / "my_lab" / "__init__.py",
        project / "listed.py",
        project / "stray.py",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE)
    (site / "my-lab.pth").write_text(f"import sys\n{project}\n")
    for name in ("my_lab-1.0", "other-2.0"):
        (site / f"{name}.dist-info").mkdir()
        (site / f"{name}.dist-info" / "METADATA").write_text(
            f"Name: {name.split('-')[0].replace('_', '-')}\nVersion: 1\n"
        )
    (site / "other-2.0.dist-info" / "top_level.txt").write_text("listed\n")
    sys.path[:0] = [str(site), str(project)]


@pytest.mark.parametrize("name", ["installed", "my_lab", "listed"])
def test_installed_packages_are_imported_linked_ones_too(environment, name):
    assert Imports().module(name).RAN


def test_what_lies_beside_a_linked_package_is_not_installed(environment, folder):
    check(refusal_of(write(folder, "import stray")), "stray", folder / "project", "--import-from")


def test_a_run_names_its_modules_too_and_needs_the_folder_again(folder):
    loaded = load(
        write(folder, "import mine\nconfig.RunConfig.optimizer = @mine.Lion()"), root=RunConfig, import_from=["."]
    )
    (folder / "run").mkdir()
    (folder / "run" / "config.gin").write_text(render(loaded.config))
    del sys.modules["mine"]  # as in another process
    check(refusal_of("run"), "mine", folder, "--import-from")
    assert render(load("run", root=RunConfig, import_from=["."]).config) == render(loaded.config)


@pytest.mark.parametrize(
    "command",
    ["train", "eval", "generate", "convert", "compile", "config show", "config diff", "tokenizer train"]
    + ["schedule show", "schedule compare"],
)
def test_every_command_that_reads_a_configuration_has_the_flag(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "--import-from FOLDER" in capsys.readouterr().out
