"""Where a run goes on: nothing that was finished is lost without a question, wherever the folder lies."""

import shutil
from pathlib import Path

import pytest
import runs
from messages import check, refusal, refused

from jaxtrain.cli.main import main
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.loop import Trainer
from jaxtrain.train.metrics import read_metrics


@pytest.fixture(scope="module")
def config(data, tmp_path_factory) -> Path:
    return runs.write_config(runs.tiny_run(data), tmp_path_factory.mktemp("config") / "tiny.gin")


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Path:
    """The folder of a run of twelve steps with checkpoints 10 and 12."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", str(config), "--run", str(folder)]) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def _without_manifests(folder: Path) -> str:
    for path in folder.rglob("manifest.json"):
        path.unlink()
    return "(10, 12)"


def _without_checkpoints(folder: Path) -> str:
    shutil.rmtree(folder / "checkpoints")
    return "metrics.jsonl"


def _renamed(folder: Path) -> str:
    for step in ("10", "12"):
        (folder / "checkpoints" / step).rename(folder / "checkpoints" / f"step_{step}")
    return "(step_10, step_12)"


def _numbered_otherwise(folder: Path) -> str:
    shutil.rmtree(folder / "checkpoints" / "10")
    (folder / "checkpoints" / "12").rename(folder / "checkpoints" / "120")
    return "(120)"


def _all_set_aside(folder: Path) -> str:
    shutil.rmtree(folder / "checkpoints" / "10")
    (folder / "checkpoints" / "12").rename(folder / "checkpoints" / "damaged-12-1")
    return "(damaged-12-1)"


def _a_file(folder: Path) -> str:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("")
    return "not a folder"


def _a_later_save_alone(folder: Path) -> str:
    shutil.rmtree(folder / "checkpoints" / "10")
    (folder / "checkpoints" / "12").rename(folder / "checkpoints" / "12.saving")
    return "metrics.jsonl"


LOSSES = (_without_manifests, _without_checkpoints, _renamed, _numbered_otherwise, _all_set_aside, _a_file)


@pytest.mark.parametrize("lose", [*LOSSES, _a_later_save_alone], ids=lambda lose: lose.__name__.strip("_"))
def test_a_run_that_would_begin_anew_over_what_is_there_is_refused(lose, folder, data):
    fact = lose(folder)
    before = runs.content(folder)
    with refused(ValueError, folder / "checkpoints", fact):
        runs.train(runs.tiny_run(data), folder)
    assert runs.content(folder) == before


@pytest.mark.parametrize("options", [[], ["--allow-config-change", "--set", "phases[0].steps=20"]])
@pytest.mark.parametrize("lose", LOSSES[:2])
def test_the_command_is_refused_before_it_writes(lose, options, folder, config, capsys):
    fact = lose(folder)
    before = runs.content(folder)
    check(refusal(capsys, "train", config, "--run", folder, *options), folder / "checkpoints", fact, "--overwrite")
    assert runs.content(folder) == before


def test_overwrite_clears_what_is_there_and_nothing_else(folder, data, tmp_path):
    """Also of checkpoints that are kept on another disk, by a link, and what was set aside."""
    _without_manifests(folder)
    elsewhere = (folder / "checkpoints").rename(tmp_path / "disk")
    (folder / "checkpoints").symlink_to(elsewhere)
    (elsewhere / "damaged-5-1").symlink_to(shutil.copytree(elsewhere / "10", tmp_path / "linked"))
    (folder / "notes.txt").write_text("mine")
    RunFolder(folder).clear()
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "notes.txt"]
    assert list(elsewhere.iterdir()) == [] and list((tmp_path / "linked").iterdir())
    assert runs.tiny_run(data).trainer(folder).find_start() is None


@pytest.mark.parametrize(
    ("half_written", "steps"), [(None, 0), (None, 4), ("5.saving", 9), ("5.saving.orbax-checkpoint-tmp", 9)]
)
def test_a_run_killed_before_its_first_checkpoint_begins_anew(half_written, steps, folder, data):
    """Or while it wrote that one, having made steps beyond it."""
    shutil.rmtree(folder / "checkpoints")
    if half_written:
        (folder / "checkpoints" / half_written).mkdir(parents=True)
    written = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(written[:steps]) + '{"st')
    assert runs.tiny_run(data).trainer(folder).find_start() is None


def test_metrics_of_somebody_else_are_not_taken_for_those_of_a_new_run(config, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("loss,accuracy\n1.0,0.5\n")
    before = runs.content(tmp_path)
    for options in ([], ["--allow-config-change"]):
        check(refusal(capsys, "train", config, "--run", tmp_path, *options), tmp_path, "--overwrite")
        assert runs.content(tmp_path) == before


def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on(folder, config, whole, caplog):
    (folder / "checkpoints" / "12" / "manifest.json").unlink()
    assert main(["train", str(config), "--run", str(folder)]) == 0
    assert "manifest.json is missing" in caplog.text and "damaged-12-1" in caplog.text
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "12", "damaged-12-1"]
    assert runs.losses(folder) == whole[:12]


TORN = b'{"step": 9, "lo'
FOREIGN = {
    "blank": b"\n",
    "foreign": b"Traceback (most recent call last):\n",
    "not UTF-8": b'{"step": 3, "loss": 1.0, "na\xffme": 1}\n',
    "another shape": b'[{"step": 3}]\n',
    "no number": b'{"step": 3, "loss": "low"}\n',
    "no step": b'{"loss": 1.0}\n',
    "torn in the middle": b'{"step": 4, "lo\n',
    "too deep": b"[" * 100_000 + b"\n",
    "too great": b'{"step": 3, "loss": 1' + 400 * b"0" + b"}\n",
    "NUL": b"\0\0\0\0\n",
}


def test_lines_that_are_no_records_are_named_and_kept_and_the_run_goes_on(folder, config, whole, caplog, capsys):
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = b"".join([*lines[:5], *FOREIGN.values(), *lines[5:], TORN])
    path.write_bytes(spoilt)
    shutil.rmtree(folder / "checkpoints" / "12")

    numbers = ", ".join(map(str, range(6, 16))) + " and 1 more"  # the last is the torn one
    assert main(["plot", str(folder)]) == 0
    assert f"{path}: left out line {numbers}, which is not the record of a step" in caplog.text
    assert path.read_bytes() == spoilt
    caplog.clear()
    assert main(["train", str(config), "--run", str(folder)]) == 0
    assert f"{path}: left out line {numbers}" in caplog.text
    assert "going on from the checkpoint of step 10" in capsys.readouterr().out
    assert runs.losses(folder) == whole[:12]
    assert (folder / "damaged-metrics-1.jsonl").read_bytes() == spoilt


def test_a_run_of_any_path_trains_resumes_and_is_read(config, whole, tmp_path, capsys):
    folder = tmp_path / "Läufe 実験 back\\slash a#b?c%20d [bold]lr[3e-4]" / "[/x] run"
    longer = ["--allow-config-change", "--set", "phases[0].steps=12"]
    assert main(["train", str(config), "--run", str(folder), "--set", "phases[0].steps=7"]) == 0
    assert f"into {folder}" in capsys.readouterr().out.replace("\n", "")
    assert main(["train", str(folder), *longer]) == 0
    assert runs.losses(folder) == whole[:12]
    assert main(["eval", str(folder)]) == 0
    assert main(["generate", str(folder), "--prompt", "abc", "--tokens", "2"]) == 0
    assert main(["plot", str(folder)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.relative_to(tmp_path).parts[0]]


def test_a_path_that_cannot_be_used_is_refused_before_training(config, tmp_path, monkeypatch, capsys):
    odd = tmp_path / "odd [1]"
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    folder = tmp_path / "run [2]"
    link = {"<link>": r"(?<=/jaxtrain-)\w+(?=,)"}
    check(refusal(capsys, "train", config, "--run", folder), folder, "TMPDIR", varies=link)
    assert not folder.exists()


def test_starting_points_are_found_without_changing_anything(data, folder):
    before = runs.content(folder)
    trainer: Trainer = runs.tiny_run(data).trainer(folder)
    assert trainer.find_start() == 12
    (folder / "checkpoints" / "13.saving").mkdir()
    assert trainer.find_start() == 12 and (folder / "checkpoints" / "13.saving").exists()
    assert runs.content(folder) == before
    assert read_metrics(RunFolder(folder).metrics)[-1]["step"] == 12


def test_a_folder_that_is_no_run_loses_nothing_by_overwriting(tmp_path):
    for name in ("profile/me.jpg", "checkpoints/2026/thesis.txt", "tensorboard/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
    RunFolder(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["me.jpg", "notes.md", "thesis.txt"]


def test_a_checkpoint_is_begun_before_the_line_of_its_step_is_written(data, tmp_path, monkeypatch):
    """Killed between the two, a run begins anew; the other way round it would be one whose checkpoints are gone."""
    begin, seen = Checkpoints.begin, []

    def look(self, step):
        seen.append((step, [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in r]))
        begin(self, step)

    monkeypatch.setattr(Checkpoints, "begin", look)
    runs.train(runs.tiny_run(data, steps=4, save_every=2), tmp_path / "run")
    assert seen[0] == (2, [1])


def test_metrics_that_are_no_file_are_refused_before_anything_is_written(config, folder, capsys):
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    before = sorted(folder.rglob("*"))
    check(refusal(capsys, "train", config, "--run", folder), folder / "metrics.jsonl")
    assert sorted(folder.rglob("*")) == before
