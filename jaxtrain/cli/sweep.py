"""`jaxtrain sweep CONFIG --grid KEY=A,B ...`: a run for every combination of values, one after another, compared.

Every run has a folder of its own, named by its values, and is what `jaxtrain train` makes of the command that `--print`
prints. The same command goes on: runs that are over are not run again, and one that was begun goes on from its newest
checkpoint. All runs of a folder differ in the keys of the grid alone. With `--together` one program trains all at once,
each on its share of the devices (train/group.py).
"""

import argparse
import contextlib
import functools
import gc
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxtrain.cli import train
from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import is_refusal, parser, refusal_line
from jaxtrain.cli.sweep_grid import Axis, Point, dotted, points, read_axes
from jaxtrain.cli.sweep_results import Outcome, outcome, table, write_csv
from jaxtrain.config import TrainConfig
from jaxtrain.record.files import RunFiles, differences
from jaxtrain.train import distributed
from jaxtrain.train.folder import RunFolder, SaveError
from jaxtrain.train.group import check_group, train_group
from jaxtrain.train.run import NonFiniteError


@dataclass(frozen=True, slots=True)
class Planned:
    """A run of the sweep: its point, its folder, the words after `jaxtrain train`, and its configuration."""

    point: Point
    folder: RunFolder
    words: tuple[str, ...]
    config: TrainConfig


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder or f"{train.default_folder(arguments.config)}-sweep")
    axes = read_axes(arguments.grid, arguments.set)
    runs = plan(arguments, axes, folder)
    if arguments.print:
        for planned in runs:
            print(shlex.join(["jaxtrain", "train", *planned.words]))
        return 0
    check_folder(folder, runs, axes, import_from=arguments.import_from)
    distributed.start(lambda: "The same command goes on with the runs that are not finished.")
    code, failed = train_together(runs) if arguments.together else train_all(runs)
    distributed.by_first(lambda: report(folder, axes, runs, failed))  # one that left with code 2 would end the first
    return code


def plan(arguments: argparse.Namespace, axes: Sequence[Axis], folder: Path) -> list[Planned]:
    """Return all runs, in the order of the grid.

    Raises:
        ValueError: a configuration is refused, or two points make the same one.
    """
    runs: list[Planned] = []
    for point in points(axes):
        changes = [*arguments.set, *point.overrides]
        config = load(arguments.config, changes, import_from=arguments.import_from).config
        for before in runs:
            if before.config == config:
                raise ValueError(f"{before.point.name} and {point.name} are the same configuration: leave one out")
        of_run = RunFolder(folder / point.name)
        words = [arguments.config, "--run", str(of_run.path)]
        words += [word for change in changes for word in ("--set", change)]
        words += [word for trusted in arguments.import_from for word in ("--import-from", trusted)]
        runs.append(Planned(point, of_run, tuple(words), config))
    return runs


def check_folder(folder: Path, runs: Sequence[Planned], axes: Sequence[Axis], *, import_from: Sequence[str]) -> None:
    """Raise ValueError where the folder has a run that differs from those of this sweep in more than its grid."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder, --folder FOLDER")
    by_name = {planned.point.name: planned for planned in runs}
    for path in sorted(folder.glob("*/config.gin")):
        own = by_name.get(path.parent.name)
        before = RunFiles.of(load(path, import_from=import_from).config)
        changes = differences(before, RunFiles.of((own or runs[0]).config))
        allowed = () if own else tuple(axis.key for axis in axes)
        others = [change for change in changes if not f"{dotted(change.path)}.".startswith(_below(allowed))]
        if others:
            raise ValueError(
                f"{path.parent} holds a run with another configuration: {'; '.join(map(str, others))}; "
                f"name another folder for this sweep, --folder FOLDER"
            )


def _below(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{key}." for key in keys)


def train_all(runs: Sequence[Planned]) -> tuple[int, dict[str, str]]:
    """Train what is not over, until a signal asks to stop. Return the exit code, and what refused runs, by name.

    The code is the greatest of `jaxtrain train`: 1 where one could not be saved or was not finite, 2 where one was
    refused. The others are run all the same, unless one of several processes is refused when the run has begun: it
    would train the next run while the others are in this one.

    Raises:
        ValueError: a run was refused to one of several processes after it had begun.
    """
    code, failed = 0, {}
    for number, planned in enumerate(runs, 1):
        name = planned.point.name
        over = outcome(planned.folder, planned.config).over
        if jax.process_index() == 0:
            print(f"--- {number} of {len(runs)}: {name}{f', {over} before' if over else ''} ---", flush=True)
        if distributed.of_first(bool(over)):  # the others may not see yet what it wrote
            continue
        arguments, begun = parser().parse_args(["train", *planned.words]), False
        try:
            config, trainer = distributed.together(functools.partial(train.prepared, arguments))
            begun = True
            result = train.train(arguments, config, trainer)
        except Exception as error:
            if not is_refusal(error) or (begun and jax.process_count() > 1):
                raise
            failed[name] = refusal_line(error)
            print(f"jaxtrain: error: {name}: {failed[name]}", file=sys.stderr)
            code = 2
        else:
            code = max(code, int(result is None))
            if result is not None and not result.finished:
                break
        gc.collect()  # a run's arrays may lie in reference cycles, and the next run needs the memory
    return code, failed


def train_together(runs: Sequence[Planned]) -> tuple[int, dict[str, str]]:
    """Train what is not over by one program, each run on its share of the devices. Return what `train_all` returns.

    Raises:
        ValueError: the runs do not share a program, or their number does not divide the devices.
    """
    left = [planned for planned in runs if not outcome(planned.folder, planned.config).over]
    if not left:
        return 0, {}
    devices, share = jax.devices(), jax.device_count() // len(left)
    if share * len(left) != len(devices):
        raise ValueError(f"--together: {len(left)} runs do not divide {len(devices)} devices; leave it out")
    given = [parser().parse_args(["train", *planned.words]) for planned in left]
    with contextlib.ExitStack() as locks:
        ready = []
        for number, arguments in enumerate(given):
            config, trainer = train.prepared(arguments, devices[number * share : (number + 1) * share])
            locks.enter_context(trainer.lock)
            ready.append((arguments, config, trainer))
        check_group([trainer for _, _, trainer in ready])
        made = [train.make_ready(*one) for one in ready]
        began = time.perf_counter()
        try:
            results = train_group(
                [one.trainer for one in made], [one.start for one in made], [planned.point.name for planned in left]
            )
        except (NonFiniteError, SaveError) as error:
            print(f"jaxtrain: stopped: {error}", file=sys.stderr)
            return 1, {}
        for arguments, one, result in zip(given, made, results, strict=True):
            train.report(arguments, one, result, time.perf_counter() - began)
    return 0, {}


def report(folder: Path, axes: Sequence[Axis], runs: Sequence[Planned], failed: dict[str, str]) -> None:
    """Print the table, and write it and the picture into the folder."""
    from jaxtrain.cli.sweep_picture import write_picture  # matplotlib is imported late, after the runs

    outcomes: list[Outcome] = [outcome(planned.folder, planned.config) for planned in runs]
    points = [planned.point for planned in runs]
    print(table(axes, points, outcomes, failed))
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "results.csv", axes, points, outcomes)
    print(f"wrote {folder / 'results.csv'}")
    if any(len(found.losses) for found in outcomes):
        write_picture(folder / "results.png", axes, points, outcomes)
        print(f"wrote {folder / 'results.png'}")
