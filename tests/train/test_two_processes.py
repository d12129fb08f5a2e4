"""Two processes of four devices each, started as on two hosts: one run, one folder, and one process goes on with it."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import runs
from devices import xla_flags
from patience import PATIENCE_SECONDS
from tolerances import SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.cli.main import main
from jaxtrain.train.hooks import Checkpoint, Evaluate, ExponentialMovingAverage, LatestWeightAverage, Sample
from jaxtrain.train.writers import TensorBoard

STEPS = 100_000  # more than any machine makes until it is stopped
# What the CPU's collectives print; their threads write the pieces of a line between one another's.
LINE = Counter("[Gloo]Rankisconnectedtopeerranks.Expectednumberofconnectedpeerranksis:")


def _is_of_gloo(text: str) -> bool:
    """Tell whether a text is lines of the collectives' library alone, in whose letters threads may have mixed."""
    said = Counter(re.sub(r"[\d\s]", "", text))
    return said == Counter({letter: count * said["["] for letter, count in LINE.items()} if said else {})


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
            XLA_FLAGS=xla_flags(devices=4),
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


def test_two_processes_train_one_run_and_one_process_goes_on_with_it(config, whole, tmp_path):
    """Both are stopped by a signal to the second; worth two starts, for nothing less shows that processes agree."""
    folder = tmp_path / "run [2]"  # Orbax takes brackets for a pattern
    processes = _start(config, folder)
    metrics = folder / "metrics.jsonl"
    runs.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 7, processes[1])
    processes[1].terminate()
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0]

    stopped = len(runs.losses(folder))
    assert stopped > 6
    said = [(tmp_path / f"process{index}.out").read_text() for index in range(2)]
    assert "on 8 cpu" in said[0] and f"stopped by a signal after step {stopped}, saved" in said[0]
    assert _is_of_gloo(said[1]), said[1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(stopped)]
    assert len(list((folder / "tensorboard").iterdir())) == 1
    assert (folder / "samples.txt").read_text().count("--- step 5 ---") == 1

    steps = stopped + 10
    hooks = "(@Checkpoint(every_steps=400), @ExponentialMovingAverage(), @LatestWeightAverage(every_steps=5, window=2))"
    changes = ["--set", f"phases[0].steps={steps}", "--set", f"hooks={hooks}"]
    assert main(["train", str(config), "--run", str(folder), "--allow-config-change", *changes]) == 0
    found = runs.losses(folder)
    assert len(found) == steps
    compared = np.array(found[: len(whole)]), np.array(whole[:steps])  # later ones only where a machine is slow to stop
    assert_close(*compared, SAME_LOSS_ON_ANY_MESH)


def test_the_one_that_is_left_says_from_which_step_the_same_command_goes_on(data, tmp_path):
    """The first is killed, whose loss JAX answers with an abort. Worth two starts, for the step is in the folder."""
    folder = tmp_path / "run"
    config = runs.write_config(runs.tiny_run(data, steps=STEPS, save_every=2), tmp_path / "tiny.gin")
    processes = _start(config, folder)
    first = folder / "checkpoints" / "2" / "manifest.json"
    runs.wait_until(first.exists, processes[1])
    processes[0].kill()
    assert processes[1].wait(PATIENCE_SECONDS) == 1
    finished = {int(path.parent.name) for path in (folder / "checkpoints").glob("*/manifest.json")}
    said = (tmp_path / "process1.err").read_text()
    assert said == f"jaxtrain: stopped: process 0 is gone. The same command goes on from step {max(finished)}.\n"
