"""Small whole runs that the tests of training share."""

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import patience
from tiny import variant

from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, TextFiles
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Constant
from jaxtrain.record.text import render
from jaxtrain.shapes import ParamTree
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.hooks.base import SAVING, Hook
from jaxtrain.train.loop import Result
from jaxtrain.train.metrics import read_metrics
from jaxtrain.train.phases import Phase

LENGTH = 16
OPTIMIZER = AdamW(learning_rate=Constant(peak=1e-2, warmup_steps=3))  # runs of any length share a compilation
COMMAND = (sys.executable, "-m", "jaxtrain.cli.main", "train")
STARTED: list[subprocess.Popen] = []  # by the test at hand


def write_corpus(folder: Path, *, files: int = 8, alphabet: str = "abcdefgh \n") -> DataConfig:
    """Write files of random text, and return the data that they are."""
    folder.mkdir(parents=True)
    for number in range(files):
        random = np.random.default_rng(number)
        (folder / f"document{number}.txt").write_text("".join(random.choice(list(alphabet), 600)))
    return DataConfig(source=TextFiles(glob=f"{folder}/*.txt"), validation_fraction=0.3)


def tiny_run(data: DataConfig, *, steps: int = 12, save_every: int = 5, **changes) -> TrainConfig:
    """Return a run of a tiny decoder, with some fields changed."""
    config = TrainConfig(
        model=variant(vocab_size=320),
        data=data,
        optimizer=OPTIMIZER,
        phases=(Phase(steps=steps, batch_size=8, sequence_length=LENGTH),),
        hooks=(Checkpoint(every_steps=save_every),),
        writers=(),
    )
    return dataclasses.replace(config, **changes)


def train(config: TrainConfig, folder: Path) -> Result:
    """Train, or go on from another configuration: tests of a crash or an end go on without the hook that made it."""
    return config.train(folder, allow_config_change=True)


def write_config(config: TrainConfig, path: Path) -> Path:
    path.write_text(render(config))
    return path


def steps_of(folder: Path) -> list[dict]:
    """Return what was measured at the steps of a run; the command may put a record of step 0 before them."""
    return [record for record in read_metrics(folder / "metrics.jsonl") if record["step"]]


def losses(folder: Path) -> list[float]:
    """Return the loss of every step, having seen that each step has one line."""
    records = steps_of(folder)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def content(folder: Path) -> dict[Path, bytes]:
    """Return what is in every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record_of_the_disk(monkeypatch) -> list[tuple]:
    """Return a list that fills with what is flushed and renamed, in order."""
    done, fsync, replace = [], os.fsync, os.replace

    def flush(file):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def move(source, target, **places):
        done.append(("rename", str(source), str(target)))
        replace(source, target, **places)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", move)
    monkeypatch.setattr(os, "replace", move)
    return done


def host_copy(tree: ParamTree) -> ParamTree:
    return jax.tree.map(np.array, tree)


class Crash(Exception):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CrashAfter(Hook):
    """Ends a run in this process the hard way, after a step and its checkpoint."""

    step: int
    order = SAVING + 1

    @property
    def name(self) -> str:
        return "crash"

    def after_step(self, run, state, hook_state):
        if run.step == self.step:
            raise Crash
        return state, hook_state


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Watch(Hook):
    """Calls a function with the run and the state after every step."""

    look: Callable
    order = SAVING + 1

    @property
    def name(self) -> str:
        return "watch"

    def after_step(self, run, state, hook_state):
        self.look(run, state)
        return state, hook_state


def start_command(
    config: Path, folder: Path, *options: str, output: str = "run", **environment: str
) -> subprocess.Popen:
    """Start `jaxtrain train` as a process of its own; what it says goes to files beside the run folder."""
    out, err = (folder.parent / f"{output}.{name}" for name in ("out", "err"))
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, str(config), "--run", str(folder), *options],
            env=os.environ | environment,
            stdout=stdout,
            stderr=stderr,
        )
    STARTED.append(process)
    return process


def kill_what_is_left() -> None:
    """End the processes that a test started and, where it failed, did not see to the end of."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for something that a process is to do before it ends."""

    def has_come() -> bool:
        assert process.poll() is None, f"ended with {process.returncode} before that"
        return condition()

    patience.wait_until(has_come)
