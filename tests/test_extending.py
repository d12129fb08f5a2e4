"""docs/extending.md: every example is run from a folder outside the package, by .gin and by Python."""

import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import documents
import jax
import pytest

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.train.metrics import read_metrics

TEXT = documents.text("docs/extending.md")
FENCE, NAME = documents.FENCE, documents.NAME


class Door(NamedTuple):
    """What a section says is written in a .gin file, and in a function `config()`."""

    gin: str
    python: str


def doors() -> dict[str, Door]:
    found = {}
    for section in TEXT.split("\n## ")[2:]:
        lines = {kind: content for kind, content in FENCE.findall(section) if not NAME.match(content)}
        found[section.partition("\n")[0]] = Door(lines["gin"], lines["python"])
    return found


DOORS = doors()
OF_ATTENTION = ("Positions of attention", "Mask of attention", "Norm of queries and keys")
OF_MIXTURES = ("Router of a mixture", "Selection of experts", "Balance of experts", "Dispatch to experts")
ALONE = (
    "Wrapper of an optimizer",
    *OF_ATTENTION,
    *OF_MIXTURES,
    "Scaling of rotary embeddings",
    "Linear",
    "Trained parameters",
    "Pipeline schedule",
)  # another has the key
AT_ONCE = [name for name in DOORS if name not in ALONE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all files of the page, where the command is run; its modules are forgotten afterwards."""
    folder, before = tmp_path_factory.mktemp("extending"), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("JAXTRAIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        for name, content in documents.files(TEXT).items():
            (folder / name).write_text(content)
        yield folder
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).is_relative_to(folder):
            del sys.modules[name]


def write(folder: Path, name: str, names: list[str]) -> None:
    """Write a configuration that goes through some doors, as a .gin file and as a Python file."""
    (folder / f"{name}.gin").write_text((folder / "head.gin").read_text() + "".join(DOORS[n].gin for n in names))
    lines = "".join(DOORS[n].python for n in names)
    body = textwrap.indent(f"config = start.config()\n{lines}return config\n", "    ")
    (folder / f"{name}.py").write_text(f"from dataclasses import replace\nimport start\ndef config():\n{body}")


def test_the_page_shows_every_door():
    mixtures = ["Router", "Selection", "Balance", "Dispatch"]
    layers = [
        "Feed-forward",
        *mixtures,
        "Mixer",
        "Norm",
        "Positions",
        "Mask",
        "Norm",
        "Join",
        "Depth",
        "Sharing",
        "Embedding",
        "Head",
        "Scaling",
    ]
    layers += ["Linear", "Trained"]
    others = [
        "Objective",
        "Source",
        "Tokenizer",
        "Packing",
        "Examples",
        "Hook",
        "Writer",
        "Remat",
        "Gradient",
        "Pipeline",
    ]
    assert [name.split()[0] for name in DOORS] == ["Optimizer", "Wrapper", "Schedule", *layers, *others]


def test_the_run_to_start_from_is_the_same_in_both_languages(folder):
    assert load("start.gin").config == load("start.py").config


@pytest.mark.parametrize("name", DOORS)
def test_a_door_is_gone_through_in_both_languages_alike(name, folder):
    file = f"only_{re.sub('[^a-z]', '_', name.lower())}"
    write(folder, file, [name])
    found = load(f"{file}.gin", import_from=["."]).config
    assert found == load(f"{file}.py").config != load("start.gin").config


def test_what_others_write_trains_all_at_once_and_goes_on_from_the_other_language(folder, capsys):
    write(folder, "everything", AT_ONCE)
    assert main(["train", "everything.gin", "--run", "run", "--import-from", "."]) == 0
    assert main(["train", "everything.py", "--run", "run", "--allow-config-change", "--set", "phases[0].steps=3"]) == 0
    assert "jaxtrain generate run --import-from . --prompt" in capsys.readouterr().out, "it may be typed"
    records = read_metrics(folder / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "focal" in record] == [1, 2, 3]
    assert all(record["parameter_norm"] > 0 for record in records if "focal" in record)
    assert [line.split()[0] for line in (folder / "run/numbers.txt").read_text().splitlines()] == ["1", "2", "3"]
    assert "import sign_descent\n" in (folder / "run/config.gin").read_text()
    assert main(["train", "run", "--import-from", "."]) == 0, "as it is recorded"


def test_attention_a_linear_and_a_wrapper_of_others_train(folder):
    write(folder, "linear", ["Source", *OF_ATTENTION, "Linear", "Wrapper of an optimizer", "Trained parameters"])
    result = load("linear.py").config.train(folder / "thin")
    up = result.state.params["stacks"]["blocks"]["blocks"][0]["mlp"]["up"]
    assert up["length"].shape == (2, 1) and result.step == 2
    assert "embedding" not in result.state.params


def test_a_mixture_of_parts_of_others_trains(folder):
    lines = "".join(DOORS[name].gin for name in ("Source", *OF_MIXTURES)).splitlines(keepends=True)
    (folder / "mixture.gin").write_text((folder / "head.gin").read_text() + "".join(dict.fromkeys(lines)))
    config = load("mixture.gin", import_from=["."]).config
    parts = config.model.pattern[0].mlp
    found = [type(part).__name__ for part in (parts.router, parts.selection, *parts.balances, parts.dispatch)]
    assert found == ["CosineRouter", "Confident", "RunningLoad", "InFloat32"]
    result = config.train(folder / "mixed")
    mlp = result.state.model.buffers["stacks"]["blocks"]["blocks"][0]["mlp"]
    assert result.step == 2 and (mlp["running"] != 1).any()
    records = read_metrics(folder / "mixed" / "metrics.jsonl")
    assert all(1 <= r["fullest_expert"] <= 4 and r["dropped"] == 0 for r in records if "loss" in r)


def test_a_schedule_of_others_is_drawn_and_trains(folder, capsys):
    write(folder, "pipeline", ["Source", "Pipeline schedule"])
    drawn = ["@fill_and_drain.FillAndDrain()", "--import-from", ".", "--stages", "4", "--microbatches", "8"]
    assert main(["schedule", "show", *drawn]) == 0
    assert "27.3%" in capsys.readouterr().out, "3 of 11"
    config = load("pipeline.py").config
    assert config.trainer(folder / "pipelined", devices=jax.devices()[:2]).train().step == 2
