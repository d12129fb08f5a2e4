"""`jaxtrain train CONFIG`: train, or go on with, the run that a configuration describes."""

import argparse
import logging
import math
import sys
import time
from pathlib import Path

import jax
from rich.console import Console

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_override import add_set_argument
from jaxtrain.cli.config_text import diff, render
from jaxtrain.config import TrainConfig
from jaxtrain.data import bigram_loss, open_rows
from jaxtrain.data.bigram import LARGEST_VOCABULARY
from jaxtrain.train import distributed
from jaxtrain.train.checkpoint import CheckpointError
from jaxtrain.train.evaluation import SEED
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Evaluate
from jaxtrain.train.loop import NonFiniteError, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a .gin file, or the folder of a run")
    parser.add_argument("--run", metavar="FOLDER", help="the run folder; runs/<name of the file> by default")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--resume", action="store_true", help="go on in the folder although its configuration differs")
    mode.add_argument("--overwrite", action="store_true", help="remove the run that is in the folder and begin anew")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="STEPS", help="trace so many steps into the folder's profile/"
    )
    add_set_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    config: TrainConfig = load(arguments.config, arguments.set).config
    folder = RunFolder(Path(arguments.run) if arguments.run else default_folder(arguments.config))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the tracebacks of errors that are reported here
    keep_compilations()
    distributed.start()
    config.check_devices(jax.device_count())
    if folder.is_used and not arguments.overwrite:
        check_same(folder, config, resume=arguments.resume)
    console = Console(quiet=jax.process_index() != 0)
    bigram = prepare_data(config, console)
    if arguments.overwrite and jax.process_index() == 0:
        folder.clear()
    if jax.process_index() == 0:
        folder.write_config(render(config))
    describe(config, folder, console)
    began = time.perf_counter()
    try:
        result = config.trainer(folder.path, profile_steps=arguments.profile).train()
    except (NonFiniteError, CheckpointError) as error:
        print(f"jaxtrain: stopped: {error}", file=sys.stderr)
        return 1
    conclude(result, folder, bigram, time.perf_counter() - began, console)
    return 0


def default_folder(config: str) -> Path:
    path = Path(config)
    return path if path.is_dir() else Path("runs") / path.stem


def check_same(folder: RunFolder, config: TrainConfig, *, resume: bool) -> None:
    """Refuse to mix two configurations in one folder unless told to."""
    if resume:
        return
    if not folder.config.exists():
        raise ValueError(f"{folder.path}: holds checkpoints but no config.gin; pass --resume to go on, or --overwrite")
    differences = diff(load(folder.config).config, config)
    if differences:
        shown = "\n".join(f"  {difference}" for difference in differences)
        raise ValueError(
            f"{folder.path} holds a run with another configuration:\n{shown}\n"
            f"pass --resume to go on with the new one, --overwrite to begin anew, or --run for another folder"
        )


def prepare_data(config: TrainConfig, console: Console) -> float | None:
    """Tokenise what is not tokenised yet; return the loss of a bigram model where one can be counted."""
    phase = config.phases[0]
    data = phase.data or config.data
    console.print("preparing data ...", style="dim")
    for split in ("train", "validation"):
        open_rows(data, split=split, sequence_length=phase.sequence_length, seed=config.seed)
    evaluations = [hook for hook in config.hooks if isinstance(hook, Evaluate)]
    if data.tokenizer.vocab_size > LARGEST_VOCABULARY or not evaluations:
        return None
    return bigram_loss(
        data,
        batch_size=phase.batch_size,
        sequence_length=phase.sequence_length,
        seed=SEED,
        num_batches=evaluations[0].batches,
    )


def describe(config: TrainConfig, folder: RunFolder, console: Console) -> None:
    phase = config.phases[0]
    console.print(
        f"{config.model.parameter_count:,} parameters, {sum(p.steps for p in config.phases):,} steps of "
        f"{phase.batch_size} x {phase.sequence_length} tokens on {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"into {folder.path}",
        highlight=False,
    )


def conclude(result: Result, folder: RunFolder, bigram: float | None, seconds: float, console: Console) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if not result.finished:
        say(f"stopped by a signal after step {result.step}, saved. The same command goes on from there.")
        return
    loss = result.numbers.get("validation_loss")
    if loss is not None:
        say(f"validation loss {loss:.4f} nats a token (perplexity {math.exp(loss):.2f})")
    if loss is not None and bigram is not None:
        say(f"a bigram model counted on the same training split: {bigram:.4f}")
    say(f"trained to step {result.step} in {seconds:.0f} s; the run is in {folder.path}")
    say(f'next: jaxtrain generate {folder.path} --prompt "def "')
    say(f"      jaxtrain eval {folder.path}")
    say(f"      jaxtrain plot {folder.path}")
