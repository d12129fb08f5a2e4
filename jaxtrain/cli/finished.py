"""Opening a run folder to use its model, which eval, generate and convert share."""

import argparse
import logging
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_override import add_set_argument
from jaxtrain.cli.kept_files import remarks
from jaxtrain.cli.neighbours import check_exists
from jaxtrain.config import TrainConfig
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train import distributed
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.trained import trained_model


class FinishedRun(NamedTuple):
    config: TrainConfig
    folder: RunFolder
    mesh: Mesh
    step: int
    model: ModelState


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--weights", metavar="NAME", help="an average the run kept (ema, lawa) in place of the weights")
    add_step_arguments(parser)
    add_set_argument(parser)


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--step` and `--best`, which choose a checkpoint."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="the checkpoint of this step; the latest by default")
    which.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss at its step")


def open_run(arguments: argparse.Namespace) -> FinishedRun:
    folder = RunFolder(Path(arguments.run))
    check_exists(folder.path)
    if not folder.config.exists():
        raise ValueError(f"{folder.path}: not the folder of a run, there is no {folder.config.name} in it")
    config: TrainConfig = load(folder.config, arguments.set, import_from=arguments.import_from).config
    print_remarks(folder, config)
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep_compilations()
    distributed.start()
    mesh = mesh_at_hand(config.mesh, config.model)
    step, model = trained_model(
        folder,
        model=config.model,
        optimizer=config.optimizer,
        hooks=config.hooks,
        mesh=mesh,
        weights=arguments.weights,
        step=arguments.step,
        best=arguments.best,
    )
    return FinishedRun(config, folder, mesh, step, model)


def print_remarks(folder: RunFolder, config: TrainConfig) -> None:
    """Print to stderr which files are not the run's own copies, or are unlike their originals."""
    for line in remarks(folder, config):
        print(f"jaxtrain: note: {line}", file=sys.stderr)


def mesh_at_hand(config: MeshConfig, model: DecoderConfig) -> Mesh:
    """Return the run's mesh if these devices can form it and it divides the model, or else one with whole copies."""
    _, shapes, axes = abstract_model(model)
    try:
        mesh = config.build()
        shardings(axes, shapes, mesh)
        return mesh
    except ValueError:
        return MeshConfig(fsdp=1, data=jax.device_count()).build()
