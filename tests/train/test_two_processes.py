"""Two processes of four devices each, started as on two hosts: one run, one folder, and one process goes on with it."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import runs
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.main import main
from jaxtrain.train.hooks import Checkpoint, Evaluate, ExponentialMovingAverage, LatestWeightAverage, Sample
from jaxtrain.train.metrics import TensorBoard

STEPS = 400
# What the CPU's collectives print; their threads write the pieces of a line between one another's.
GLOO = re.compile(
    r"\[Gloo\] Rank |\d+| is connected to | peer ranks\. Expected number of connected peer ranks is : |\s"
)
FOUR_DEVICES = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")


@pytest.fixture
def config(data, tmp_path) -> Path:
    hooks = (
        Checkpoint(every_steps=STEPS),
        Evaluate(every_steps=5, batches=1),
        ExponentialMovingAverage(),
        LatestWeightAverage(every_steps=5, window=2),
        Sample(every_steps=5, prompt="ab", tokens=4),
    )
    config = runs.tiny_run(data, steps=STEPS, hooks=hooks, writers=(TensorBoard(),))
    return runs.write_config(config, tmp_path / "tiny.gin")


def _start(config: Path, folder: Path, *options: str) -> list:
    address = f"localhost:{runs.free_port()}"
    return [
        runs.start_command(
            config,
            folder,
            *options,
            output=f"process{index}",
            XLA_FLAGS=FOUR_DEVICES,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


def test_two_processes_train_one_run_and_one_process_goes_on_with_it(config, whole, tmp_path):
    """Both are stopped by a signal to the second; worth two starts, for nothing less shows that processes agree."""
    folder = tmp_path / "run"
    processes = _start(config, folder)
    metrics = folder / "metrics.jsonl"
    runs.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 7, processes[1])
    processes[1].terminate()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]

    stopped = len(runs.losses(folder))
    assert 6 < stopped < 60
    said = [(tmp_path / f"process{index}.out").read_text() for index in range(2)]
    assert "on 8 cpu" in said[0] and f"stopped by a signal after step {stopped}, saved" in said[0]
    assert GLOO.sub("", said[1]) == ""
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(stopped)]
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert (folder / "samples.txt").read_text().count("--- step 5 ---") == 1

    hooks = "(@Checkpoint(every_steps=400), @ExponentialMovingAverage(), @LatestWeightAverage(every_steps=5, window=2))"
    changes = ["--set", "phases[0].steps=60", "--set", f"hooks={hooks}"]
    assert main(["train", str(config), "--run", str(folder), "--resume", *changes]) == 0
    assert_close(np.array(runs.losses(folder)), np.array(whole), SAME_LOSS_ON_ANY_MESH)


def test_the_one_that_is_left_says_from_which_step_the_same_command_goes_on(data, tmp_path):
    """The first is killed, whose loss JAX answers with an abort. Worth two starts, for the step is in the folder."""
    folder = tmp_path / "run"
    config = runs.write_config(runs.tiny_run(data, steps=STEPS, save_every=2), tmp_path / "tiny.gin")
    processes = _start(config, folder)
    first = folder / "checkpoints" / "2" / "manifest.json"
    runs.wait_until(first.exists, processes[1])
    processes[0].kill()
    assert processes[1].wait(timeout=60) == 1
    finished = {int(path.parent.name) for path in (folder / "checkpoints").glob("*/manifest.json")}
    said = (tmp_path / "process1.err").read_text()
    assert said == f"jaxtrain: stopped: process 0 is gone. The same command goes on from step {max(finished)}.\n"
