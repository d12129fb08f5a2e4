"""`jaxtrain convert RUN NEW_RUN --task N`: the network of one task as a run of its own."""

import argparse
import dataclasses
from pathlib import Path

import optax

from jaxtrain.cli.config_file import load
from jaxtrain.cli.finished import mesh_at_hand, restored
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.base import transformation
from jaxtrain.record.files import RunFiles
from jaxtrain.surgery.task_network import of_task
from jaxtrain.surgery.whole_folder import whole_folder
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.state import abstract_state, begin


def convert_task(folder: RunFolder, target: Path, arguments: argparse.Namespace) -> None:
    """Write a run that has the network of a task, at step 0. Raises ValueError where the model has no such task."""
    config = load(folder.config, arguments.set, import_from=arguments.import_from).config
    which = {"weights": arguments.weights, "step": arguments.step, "best": arguments.best}
    _, at, model = restored(folder, config, **which)
    small, state = of_task(config.model, model, arguments.task)
    config = dataclasses.replace(config, model=small)
    axes, mesh = abstract_model(small).axes, mesh_at_hand(config.mesh, small)
    tx = transformation(config.optimizer, optax.constant_schedule(0.0), axes.params, clip_norm=config.clip_norm)
    begun = begin(state, tx, abstract_state(small, tx, axes, mesh))
    with whole_folder(target) as path:
        new = RunFolder(path)
        RunFiles.of(config).write(new)
        with Checkpoints(new.checkpoints) as checkpoints:
            checkpoints.save(0, Snapshot(begun, {}, {}))
    count = f"{small.parameter_count:,} parameters"
    print(f"task {arguments.task} of step {at} of {folder.path}: {count}; the run is in {target}")
