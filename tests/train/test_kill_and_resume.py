"""Real processes, killed by real signals: what they leave behind, and how the same command goes on from it."""

import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import runs
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.main import main
from jaxtrain.train import stored
from jaxtrain.train.hooks import Checkpoint, ExponentialMovingAverage
from jaxtrain.train.writers import TensorBoard

STEPS = 100_000  # more than any machine makes until it is stopped


@pytest.fixture
def config(data, tmp_path) -> Path:
    hooks = (ExponentialMovingAverage(decay=0.9), Checkpoint(every_steps=6))
    config = runs.tiny_run(data, steps=STEPS, hooks=hooks, writers=(TensorBoard(),))
    return runs.write_config(config, tmp_path / "tiny.gin")


def _train(config: Path, folder: Path, *options: str) -> None:
    assert main(["train", str(config), "--run", str(folder), *options]) == 0


def _lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def test_a_killed_run_goes_on_exactly(config, uninterrupted, tmp_path, capsys, caplog):
    """Killed at a random step, then while it writes a checkpoint; worth two starts. test_two_processes.py stops one."""
    folder = tmp_path / "run"
    step = random.randint(7, 20)
    process = runs.start_command(config, folder)
    runs.wait_until(lambda: _lines(folder) >= step, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert step <= _lines(folder)

    process = runs.start_command(config, folder)
    runs.wait_until(lambda: _lines(folder) > 20 and _saving(folder), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left_half_written = _saving(folder)

    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    saved = max(stored.steps(folder / "checkpoints"))
    steps = _lines(folder) + 10
    rest = ["--allow-config-change", "--set", f"phases[0].steps={steps}"]
    _train(config, folder, *rest)
    assert f"going on from the checkpoint of step {saved}" in capsys.readouterr().out
    assert ("it was never finished" in caplog.text) >= left_half_written
    whole = uninterrupted(steps)
    assert runs.losses(folder) == whole

    _train(config, elsewhere, *rest, "--set", "mesh.tensor=2", "--set", "model.scan=False")
    assert_close(np.array(runs.losses(elsewhere)), np.array(whole), SAME_LOSS_ON_ANY_MESH)

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    _train(config, folder, *rest)
    assert f"the run has made its {steps} steps: nothing is left to do" in capsys.readouterr().out
    assert before.items() <= {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}.items()
