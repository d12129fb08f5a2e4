"""A run from Python is a run: its folder says what it is, and opens again in a line."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest
import runs
from messages import refused
from tiny import variant
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.mesh import MeshConfig
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.lion import Lion
from jaxtrain.optim.schedules import Constant
from jaxtrain.pipeline.schedules.from_file import FromFile
from jaxtrain.record.files import RunFiles
from jaxtrain.record.run import check_same, files_of, write_record
from jaxtrain.record.text import diff, render
from jaxtrain.record.written import written_differences
from jaxtrain.runs import load_run
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.gradients.pipelined import Pipelined
from jaxtrain.train.hooks import Checkpoint, EarlyStop, Evaluate


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A configuration of three steps, the last two saved, and the folder of its run."""
    hooks = (Evaluate(every_steps=2, batches=1), Checkpoint(every_steps=2))
    config, folder = runs.tiny_run(data, steps=3, hooks=hooks), tmp_path_factory.mktemp("trained") / "run"
    config.train(folder)
    return config, folder


def test_it_is_read_by_the_commands(trained, capsys):
    config, folder = trained
    assert load(folder).config == config
    assert main(["train", str(folder)]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_it_is_opened_evaluated_and_continued_as_the_commands_do(trained, capsys):
    _, folder = trained
    run, before = load_run(folder), load_run(folder, step=2)
    assert (run.step, before.step) == (3, 2)
    for opened in (run, before):
        [loss] = [r["validation_loss"] for r in opened.metrics if r["step"] == opened.step]
        assert_close(opened.evaluate(batches=1).loss, loss, SAME_LOSS_ON_ANY_MESH)
    assert main(["generate", str(folder), "--prompt", "ab", "--tokens", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out == run.generate("ab", tokens=3, seed=5) + "\n"


def test_what_it_is_asked_for_is_checked(trained, tmp_path):
    run = load_run(trained[1])
    for wrong in ({"tokens": 0}, {"seed": -1}):
        with refused(ValueError, *(f"{key}={value}" for key, value in wrong.items())):
            run.generate("a", **wrong)
    with refused(ValueError, "batches=0"):
        run.evaluate(batches=0)
    with refused(ValueError, tmp_path, "config.gin"):
        load_run(tmp_path)


def test_a_configuration_that_no_file_can_name_is_not_written_and_says_so(data, tmp_path, caplog):
    config = runs.tiny_run(data, hooks=(runs.Watch(look=lambda run, state: None),))
    with caplog.at_level(logging.WARNING):
        assert files_of(config, RunFolder(tmp_path)) is None
    assert "config.gin" in caplog.text and "hooks[0].look" in caplog.text and not list(tmp_path.iterdir())


def test_it_keeps_copies_of_the_files_that_it_names_and_goes_by_them(data, tmp_path):
    table = tmp_path / "table.txt"
    table.write_text("chunks: 0 1\nstage 0: F0.0 BW0.0\nstage 1: F0.1 BW0.1\n")
    schedule = FromFile(path=str(table))
    config = runs.tiny_run(data, gradients=Pipelined(microbatches=1, schedule=schedule), mesh=MeshConfig(stage=2))
    folder = RunFolder(tmp_path / "run")
    files = RunFiles.of(config)
    write_record(folder, files)
    copied = files.from_copies(folder)
    assert Path(copied.gradients.schedule.path).parent == tmp_path / "run" / "kept_files"
    assert Path(copied.gradients.schedule.path).read_text() == table.read_text()
    assert load(tmp_path / "run").config == copied
    for same in (config, copied):
        assert check_same(folder, RunFiles.of(same), allow_change=False) == []
    table.write_text("chunks: 0 1\n\nstage 0: F0.0 BW0.0\nstage 1: F0.1 BW0.1\n")
    with refused(ValueError, "gradients.schedule.path", table):
        check_same(folder, RunFiles.of(config), allow_change=True)


def test_a_folder_with_another_configuration_is_refused_with_the_keys_and_left_as_it_was(trained, tmp_path):
    config, folder = trained
    before = runs.content(folder)
    rate = dataclasses.replace(config, seed=1, optimizer=AdamW(learning_rate=Constant(peak=1e-3, warmup_steps=3)))
    with refused(ValueError, "seed: 0 -> 1", "optimizer.learning_rate.peak: 0.01 -> 0.001", "allow_config_change=True"):
        rate.train(folder)
    wide = dataclasses.replace(config, model=variant(vocab_size=384))
    with refused(ValueError, "cannot go on", "model.vocab_size: 320 -> 384"):
        wide.train(folder, allow_config_change=True)
    assert runs.content(folder) == before
    again = shutil.copytree(folder, tmp_path / "run")
    (again / "config.gin").unlink()
    with refused(ValueError, "no config.gin", "allow_config_change=True"):
        config.train(again)
    assert not (again / "config.gin").exists()
    assert config.train(again, allow_config_change=True).step == config.train(folder).step == 3


def test_texts_are_compared_as_configurations_are(trained):
    config, _ = trained
    hooks = (Checkpoint(every_steps=2), EarlyStop(), Evaluate(every_steps=2))
    other = dataclasses.replace(config, seed=2, hooks=hooks, optimizer=Lion(learning_rate=Constant(peak=1.0)))
    for right in (config, other, dataclasses.replace(config, hooks=())):
        found = written_differences(render(config), render(right))
        assert set(found) == set(diff(config, right))
