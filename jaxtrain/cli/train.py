"""`jaxtrain train CONFIG`: begin or resume the run that a configuration describes."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from jaxtrain.cli import bigram_record
from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.cli.data_streams import Stores, batches_of_an_evaluation, evaluated, streams, telling_lines
from jaxtrain.cli.dry_run import dry_run
from jaxtrain.cli.moved_rate import moved_rate
from jaxtrain.cli.train_report import conclude, describe
from jaxtrain.config import TrainConfig
from jaxtrain.data import bigram_loss
from jaxtrain.data.bigram import LARGEST_VOCABULARY
from jaxtrain.record.files import RunFiles
from jaxtrain.record.run import check_same, checked_start, write_record
from jaxtrain.train import distributed
from jaxtrain.train.evaluation import SEED
from jaxtrain.train.folder import RunFolder, SaveError
from jaxtrain.train.loop import Result, Trainer
from jaxtrain.train.manifest import is_finished
from jaxtrain.train.run import NonFiniteError


def run(arguments: argparse.Namespace) -> int:
    config, trainer = prepared(arguments)
    if not arguments.dry_run:
        return 1 if train(arguments, config, trainer) is None else 0
    describe(config, trainer.folder, Console(quiet=jax.process_index() != 0))
    dry_run(config, lambda text: print(text, flush=True) if jax.process_index() == 0 else None)
    return 0


def train(arguments: argparse.Namespace, config: TrainConfig, trainer: Trainer) -> Result | None:
    """Train, or go on. Return how the run ended, None where it could not be written or was not finite."""
    with trainer.lock:
        return run_locked(arguments, config, trainer)


def prepared(arguments: argparse.Namespace, devices: list[jax.Device] | None = None) -> tuple[TrainConfig, Trainer]:
    """Return the configuration and its trainer, once all processes are there. Nothing is written yet."""
    config: TrainConfig = load(arguments.config, arguments.set, import_from=arguments.import_from).config
    texts = [*(data.source for data in config.datasets), *(own.source for own in config.validation)]
    for source in dict.fromkeys(source for text in texts for source in text.parts):
        source.check()
    folder = RunFolder(Path(arguments.run) if arguments.run else default_folder(arguments.config))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs tracebacks of errors that this command reports
    keep_compilations()
    distributed.start(lambda: going_on(folder))
    trainer = config.trainer(folder.path, profile_steps=arguments.profile, devices=devices)
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path} is a file: name a folder, --run FOLDER")
    return config, trainer


def run_locked(arguments: argparse.Namespace, config: TrainConfig, trainer: Trainer) -> Result | None:
    """Train in a folder that this process has locked."""
    ready, began = make_ready(arguments, config, trainer), time.perf_counter()
    try:
        result = ready.trainer.train_from(ready.start)
    except (NonFiniteError, SaveError) as error:
        print(f"jaxtrain: stopped: {error}", file=sys.stderr)
        return None
    report(arguments, ready, result, time.perf_counter() - began)
    return result


class Ready(NamedTuple):
    """A run whose folder is written, to go on from `start`; `bigram` is the loss of a bigram model, if known."""

    config: TrainConfig
    trainer: Trainer
    start: int | None
    bigram: float | None
    console: Console


def make_ready(arguments: argparse.Namespace, config: TrainConfig, trainer: Trainer) -> Ready:
    """Prepare the data and the folder of a run. Nothing in the folder changes before `begin`."""
    folder = trainer.folder
    files = RunFiles.of(config)  # read now, because they may be in the folder that --overwrite clears
    before, changes = None, []
    if not arguments.overwrite:
        before = recorded_in(folder, arguments.import_from)
        files_before = RunFiles.of(before) if before else None
        changes = check_same(folder, files, allow_change=arguments.allow_config_change, before=files_before)
    console = Console(quiet=jax.process_index() != 0)
    bigram = prepare_data(config, console)
    if folder.is_used and (arguments.overwrite or arguments.allow_config_change):
        check_steps(config)
    start = None if arguments.overwrite else checked_start(trainer, changes)
    trainer.check_start(start)
    begin(folder, files, bigram, overwrite=arguments.overwrite)
    config = files.from_copies(folder)
    devices, lock = trainer.devices, trainer.lock
    trainer = config.trainer(folder.path, profile_steps=arguments.profile, devices=devices, lock=lock)
    describe(config, folder, console)
    for line in moved_rate(before, config, start):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("compiling the first step ...", style="dim")
    return Ready(config, trainer, start, bigram, console)


def report(arguments: argparse.Namespace, ready: Ready, result: Result, seconds: float) -> None:
    """Print how a run has ended."""
    trusted = [*arguments.import_from]
    if Path(arguments.config).suffix == ".py":  # the run's config.gin may name what lies beside it
        trusted.append(str(Path(arguments.config).parent))
    folder = ready.trainer.folder
    conclude(result, ready.config, folder, ready.bigram, seconds, ready.console, trusted)


def going_on(folder: RunFolder) -> str:
    """Return a sentence that says from which step the run of a folder will resume.

    Only the folder is read, because other processes may be gone.
    """
    found = [path for path in folder.checkpoints.glob("[0-9]*") if path.name.isdecimal() and is_finished(path)]
    step = max((int(path.name) for path in found), default=None)
    return "The same command begins anew." if step is None else f"The same command goes on from step {step}."


def default_folder(config: str) -> Path:
    path = Path(config)
    return path if path.is_dir() else Path("runs") / path.stem


def recorded_in(folder: RunFolder, import_from: Sequence[str]) -> TrainConfig | None:
    """Return the configuration of the run in a folder, if its config.gin is there."""
    return load(folder.config, import_from=import_from).config if folder.config.exists() else None


def check_steps(config: TrainConfig) -> None:
    """Trace the step of every phase, so that its errors are raised before the folder's run is replaced."""
    recipe = config.recipe
    for span in recipe.spans:
        recipe.program(span, (span.phase.mesh or config.mesh).build()).trace()


def prepare_data(config: TrainConfig, console: Console) -> float | None:
    """Tokenise the text that the cache lacks. Return the validation loss of a bigram model, or None.

    It is None for a large vocabulary, for other examples than next tokens, and for a run without validation.
    """
    console.print("preparing data ...", style="dim")
    validation, stores = batches_of_an_evaluation(config), Stores(console)
    prepared = streams(config, stores)
    if validation:
        for stream in prepared:
            evaluated(config, stream, stores)
    for line in (line for stream in prepared for line in telling_lines(stream)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    phase = config.phases[-1]  # the last validation loss of the run is measured on its data
    data = phase.data or config.data
    if data.tokenizer.vocab_size > LARGEST_VOCABULARY or not data.examples.asks_for_next or not validation:
        return None
    if not data.validation_fraction:
        return None
    return bigram_loss(
        data,
        batch_size=phase.batch_size,
        sequence_length=phase.sequence_length,
        seed=SEED,
        num_batches=validation,
    )


def begin(folder: RunFolder, files: RunFiles, bigram: float | None, *, overwrite: bool) -> None:
    """Write the configuration and its files, and the bigram loss of a new run, from the first process.

    Raises:
        SaveError: they cannot be written. It is raised on every process.
    """
    write_record(folder, files, clear=overwrite, then=lambda: bigram_record.keep(folder, bigram))
