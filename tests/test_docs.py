"""What README and docs print is what can be typed: each command is read, and those of two pages are run in order."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from beginnings import make_published
from documents import ROOT, blocks, commands, files, text
from tiny_tokenizer import write_tokenizer

from jaxtrain.cli.arguments import COMMANDS
from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main, parser
from jaxtrain.record.files import RunFiles
from jaxtrain.train.folder import RunFolder

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [page for page in PAGES if commands(text(page))]


def parsed(words: list[str]) -> dict:
    try:
        return vars(parser().parse_args(words))
    except SystemExit as done:
        assert done.code == 0 and words == ["--version"], words
        return {}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder with the runs and the tokenizer that the pages begin with, as far as configurations can tell."""
    folder = tmp_path_factory.mktemp("pages")
    files = RunFiles.of(load(ROOT / "configs/quickstart.gin").config)
    for run in ("quickstart", "base"):
        RunFolder(folder / "runs" / run).path.mkdir(parents=True)
        files.write(RunFolder(folder / "runs" / run))
    write_tokenizer(folder / "tokenizer.json")
    make_published(folder / "published")
    return folder


def test_commands_are_found():
    assert {"README.md", "docs/start.md", "docs/configuration.md", "docs/finetuning.md"} <= set(WITH_COMMANDS)
    assert ["schedule", "show", "ZBH1", "--stages", "4", "--microbatches", "8"] in commands(text("README.md"))
    assert ["train", "configs/quickstart.gin"] in commands(
        "    pip install uv && uv run jaxtrain train configs/quickstart.gin"
    )
    assert commands("```\nA=b jaxtrain eval \\\n  runs/a  # c\n```") == [["eval", "runs/a"]]


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_every_command_of_a_page_can_be_typed(page, quickstart, monkeypatch):
    monkeypatch.chdir(quickstart)
    for words in commands(text(page)):
        arguments = parsed(words)
        file = arguments.get("config") or arguments.get("file") or ""
        shipped = text(file) if file.startswith("configs/") else ""
        runs = re.findall(r"runs/\w+", " ".join([file, shipped, *arguments.get("set", ())]))
        if (shipped or runs) and all(Path(run).exists() for run in runs):
            load(file, arguments["set"])


@pytest.mark.parametrize("page", ["docs/start.md", "docs/configuration.md", "docs/data.md"])
def test_the_commands_of_a_page_are_run_in_order_as_printed(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, content in files(text(page)).items():
        Path(name).write_text(content)
    for block in blocks(text(page)):
        for line in block.lines:
            words = shlex.split(line, comments=True)
            if block.mark in ("needs", "takes"):
                assert words[0] != "jaxtrain" or parsed(words[1:]) is not None
            elif words[0] == "jaxtrain":
                assert main(words[1:]) == (2 if block.mark == "refused" else 0), capfd.readouterr().err
            else:
                subprocess.run(["bash", "-ec", line], check=True)


def test_readme_shows_every_command():
    assert COMMANDS.keys() <= {words[0] for words in commands(text("README.md"))}


def test_pages_that_are_named_exist():
    for page in PAGES:
        links = [link for link in re.findall(r"\]\(([^)#]+?)(?:#.*?)?\)", text(page)) if "://" not in link]
        missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
        assert not missing, page
