"""Real processes, killed by real signals: what they leave behind, and how the same command goes on from it."""

import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import runs
from patience import PATIENCE_SECONDS
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.main import main
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


def test_a_killed_run_goes_on_exactly(config, uninterrupted, tmp_path, capsys):
    """Killed at a random step, then while it writes a checkpoint, then asked to stop; worth four starts, some 30 s."""
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

    process = runs.start_command(config, folder)
    runs.wait_until(lambda: _lines(folder) > 30, process)
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 0
    said = (tmp_path / "run.out").read_text()
    stopped = _lines(folder)
    assert f"stopped by a signal after step {stopped}, saved" in said
    assert ("it was never finished" in (tmp_path / "run.err").read_text()) >= left_half_written
    assert (folder / "checkpoints" / str(stopped) / "manifest.json").exists()

    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    steps = stopped + 10
    rest = ["--allow-config-change", "--set", f"phases[0].steps={steps}"]
    _train(config, folder, *rest)
    assert f"going on from the checkpoint of step {stopped}" in capsys.readouterr().out
    whole = uninterrupted(steps)
    assert runs.losses(folder) == whole

    _train(config, elsewhere, *rest, "--set", "mesh.tensor=2", "--set", "model.scan=False")
    assert_close(np.array(runs.losses(elsewhere)), np.array(whole), SAME_LOSS_ON_ANY_MESH)

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    _train(config, folder, *rest)
    assert f"the run has made its {steps} steps: nothing is left to do" in capsys.readouterr().out
    assert before.items() <= {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}.items()
