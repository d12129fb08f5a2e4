"""`jaxtrain convert --adapter`: adapters alone, from a run to a folder of peft, or from such a folder to a run.

A run that is made of an adapter begins at the weights of the run `--base`, which it names in its configuration.
"""

import dataclasses
from pathlib import Path

import jax
import optax

from jaxtrain.cli.config_file import load
from jaxtrain.cli.finished import mesh_at_hand, restored
from jaxtrain.config import TrainConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.base import transformation
from jaxtrain.record.files import RunFiles
from jaxtrain.sharding import shardings
from jaxtrain.surgery.huggingface.adapters import export_adapter, read_adapter
from jaxtrain.surgery.linears import plain
from jaxtrain.surgery.whole_folder import whole_folder
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.initial import FromRun
from jaxtrain.train.state import abstract_state, begin


def export_run_adapter(
    folder: RunFolder,
    target: Path,
    config: TrainConfig,
    *,
    family: str | None,
    weights: str | None,
    step: int | None,
    best: bool,
) -> None:
    """Write the adapters of a run. Raises ValueError where it has none, or more than them is trained."""
    _, at, model = restored(folder, config, weights=weights, step=step, best=best)
    base = config.initial.path if isinstance(config.initial, FromRun) else None
    with whole_folder(target) as path:
        export_adapter(config.model, model.params, path, family=family, base=base)
    print(f"the adapters of step {at} of {folder.path}, as {target}")


def import_run_adapter(source: Path, base: Path, target: Path, *, family: str | None, import_from: list[str]) -> None:
    """Write a run with the adapters of a folder around the weights of another run.

    Raises:
        ValueError: the adapters are of another model, or the other run cannot be read.
    """
    config = load(base, import_from=import_from).config
    initial, key = FromRun(path=str(base), model=config.model), jax.random.key(config.seed)
    mesh = mesh_at_hand(config.mesh, config.model)
    whole = initial(plain(config.model), mesh, key).params
    model, adapters = read_adapter(source, config.model, whole, family=family)
    config = dataclasses.replace(config, model=model, initial=initial)
    _, shapes, axes = abstract_model(model)
    state = initial(model, mesh, key)
    state = state._replace(params=jax.device_put(adapters, shardings(axes.params, shapes.params, mesh)))
    tx = transformation(config.optimizer, optax.constant_schedule(0.0), axes.params, clip_norm=config.clip_norm)
    begun = begin(state, tx, abstract_state(model, tx, axes, mesh))
    with whole_folder(target) as path:
        folder = RunFolder(path)
        RunFiles.of(config).write(folder)
        with Checkpoints(folder.checkpoints) as checkpoints:
            checkpoints.save(0, Snapshot(begun, {}, {}))
    print(f"the adapters of {source} around {base}; the run is in {target}")
