"""`train --dry-run`: a step of every phase on made-up tokens, with nothing read and nothing written."""

import re
import sys

import jax
import numpy as np
import pytest
from messages import check, refusal
from tiny_run import CONFIGS, QUICKSTART, command, sets

from jaxtrain.cli.config_file import load
from jaxtrain.cli.dry_run import made_up
from jaxtrain.cli.main import main

TINY = {
    "model.d_model": 32,
    "model.repeats": 1,
    "model.pattern[0].mixer.head_dim": 8,
    "model.pattern[0].mlp.hidden": 64,
    "optimizer.learning_rate.warmup_steps": 0,
}


def test_a_step_of_every_phase_is_made_and_nothing_is_read_or_written(tmp_path, monkeypatch, capsys):
    """With an average, for a text that nobody may open."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("never read")
    monkeypatch.delattr("jaxtrain.data.rows.open_store")
    phase = "steps=1, batch_size=8, sequence_length=16"
    changes = {
        "phases": f"(@Phase({phase}), @Phase({phase}))",
        "hooks": "(@ExponentialMovingAverage(), @Evaluate(every_steps=1))",
        "data.source": f"@TextFiles(glob='{tmp_path}/*.txt')",
    }
    assert main(["train", QUICKSTART, *sets(TINY | changes), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    losses = re.findall(r"phases\[(\d)\]: one step of 8 x 16 tokens on 8 devices.* loss (\d+\.\d+),", printed)
    assert [number for number, _ in losses] == ["0", "1"]
    assert all(abs(float(loss) - np.log(320)) < 1 for _, loss in losses)
    assert "nothing was written" in printed and [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_made_up_rows_have_two_documents_and_are_shown_as_examples():
    config = load(CONFIGS / "encoder_tiny.gin").config
    [span, *_] = config.recipe.spans
    batch = made_up(config, span, config.mesh.build())
    assert batch.tokens.shape == (span.phase.batch_size, span.phase.sequence_length)
    assert set(np.unique(batch.segment_ids)) == {1, 2} and int(batch.positions[0, 0]) == 0
    assert 0 < float(jax.numpy.mean(batch.weights)) < 1, "the examples of the configuration mask some tokens"


@pytest.mark.parametrize("wrong", ["writers=(@WeightsAndBiases(project='p'),)"])
def test_writers_are_asked_before_anything_is_prepared(wrong, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check(refusal(capsys, *command(text), "--run", tmp_path / "run", "--set", wrong), "wandb")
    assert not (tmp_path / "run").exists()
