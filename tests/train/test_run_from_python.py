"""A run from Python is a run: its folder says what it is, and opens again in a line."""

import logging

import jax
import pytest
import runs
from messages import refused

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.runs import load_run
from jaxtrain.train.hooks import Checkpoint, Evaluate
from jaxtrain.train.metrics import read_metrics


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A configuration of two steps, each saved, and the folder of its run."""
    hooks = (Evaluate(every_steps=1, batches=1), Checkpoint(every_steps=1))
    config, folder = runs.tiny_run(data, steps=2, hooks=hooks), tmp_path_factory.mktemp("trained") / "run"
    config.train(folder)
    return config, folder


def test_it_is_read_by_the_commands(trained, capsys):
    config, folder = trained
    assert load(folder).config == config
    assert main(["train", str(folder)]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_it_is_opened_evaluated_and_continued_as_the_commands_do(trained, capsys):
    _, folder = trained
    run, first = load_run(folder), load_run(folder, step=1)
    assert (run.step, first.step) == (2, 1)
    for opened in (run, first):
        [loss] = [r["validation_loss"] for r in opened.metrics if r["step"] == opened.step]
        assert opened.evaluate(batches=1).loss == pytest.approx(loss, abs=1e-6)
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


def test_devices_may_be_chosen(trained, data, tmp_path):
    config, folder = trained
    result = config.train(tmp_path / "run", devices=jax.devices()[:1])
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(result.state.params)} == {1}
    losses = [[r["loss"] for r in read_metrics(at / "metrics.jsonl")] for at in (folder, tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_configuration_that_no_file_can_name_trains_with_a_warning(data, tmp_path, caplog):
    config = runs.tiny_run(data, steps=1, hooks=(runs.Watch(look=lambda run, state: None),))
    with caplog.at_level(logging.WARNING):
        config.train(tmp_path / "run")
    assert "config.gin" in caplog.text and "hooks[0].look" in caplog.text
    assert not (tmp_path / "run" / "config.gin").exists()
