"""`jaxtrain merge RUN RUN ... --by MERGE --out FOLDER`: the weights of several runs as those of a new one.

The new run has checkpoint 0, with the merged parameters and buffers (such as the biases of routers), and the
configuration of the first run. Weights are read and written one chunk at a time: host memory holds the two largest
tensors and a few chunks. Adapters are merged and quantized weights made plain first; a run that has them is read whole.
"""

import argparse
import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtrain.cli.config_file import load
from jaxtrain.cli.convert import weights_of
from jaxtrain.cli.finished import print_remarks
from jaxtrain.cli.imported import IMPORTED
from jaxtrain.cli.neighbours import check_exists
from jaxtrain.cli.one_object import one_object
from jaxtrain.config import TrainConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import apart, together
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.record.files import RunFiles
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.checkpoint_item import write_params
from jaxtrain.surgery.linears import plain
from jaxtrain.surgery.merging import Merge, merged
from jaxtrain.surgery.whole_folder import whole_folder
from jaxtrain.train.folder import RunFolder, SaveError, is_full
from jaxtrain.train.initial import Random
from jaxtrain.train.initial.same_model import check_same_architecture, differences
from jaxtrain.train.manifest import write_manifest

EXAMPLES = "`Assembly(weights=(0.5,0.5))`, `WeightEnsemble()`"


class Parent(NamedTuple):
    """A run and one of its steps, None for the latest."""

    folder: RunFolder
    config: TrainConfig
    step: int | None = None


def run(arguments: argparse.Namespace) -> int:
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    target, trusted = arguments.out, arguments.import_from
    check_is_new(target)
    merge = one_object(arguments.by, Merge, "merge", examples=EXAMPLES, import_from=trusted)
    parents = [parent(Path(path), trusted) for path in arguments.parents]
    for other in parents[1:]:
        check_same_model(parents[0], other)
    count = write(merge, parents, target)
    print(f"{count:,} parameters of {len(parents)} runs by {merge!r}; the run is in {target}")
    return 0


def check_is_new(target: Path) -> None:
    """Raise ValueError where a folder to be made is there already, and not empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists: name a new folder")


def parent(path: Path, import_from: list[str]) -> Parent:
    check_exists(path)
    folder = RunFolder(path)
    if not folder.config.exists():
        raise ValueError(
            f"{path}: there is no {folder.config.name} in it; of a Hugging Face folder make a run first, "
            f"jaxtrain convert {path} RUN"
        )
    config = load(folder.config, import_from=import_from).config
    print_remarks(folder, config)
    return Parent(folder, config)


def check_same_model(base: Parent, other: Parent) -> None:
    """Raise ValueError where the weights of two runs are not of one architecture, function and vocabulary."""
    path = str(other.folder.path)
    check_same_architecture(other.config.model, base.config.model, path=path, what="a run")
    for key, ours, theirs in differences(plain(base.config.model), plain(other.config.model), "model"):
        raise ValueError(
            f"{path}: {key}={theirs!r} there and {ours!r} in {base.folder.path}, so its weights compute "
            "something else; merge runs of one model"
        )
    if base.config.data.tokenizer.identity() != other.config.data.tokenizer.identity():
        raise ValueError(
            f"{path}: data.tokenizer={other.config.data.tokenizer!r} there and "
            f"{base.config.data.tokenizer!r} in {base.folder.path}; merge runs of the same tokens"
        )


def write(merge: Merge, parents: list[Parent], target: Path) -> int:
    """Write the run folder whole or not at all. Return the number of parameters."""
    try:
        return _write(merge, parents, target)
    except (OSError, ValueError) as error:  # TensorStore raises ValueError where the disk is full
        if is_full(error):
            raise SaveError(f"{target} could not be written", error) from error
        raise


def _write(merge: Merge, parents: list[Parent], target: Path) -> int:
    base = parents[0]
    model = merge.model(plain(base.config.model), len(parents))
    shapes, axes = abstract_model(model)[1:]
    with opened(parents) as params, whole_folder(target) as path:
        folder = RunFolder(path)
        child = apart(merged(merge, params, together(axes), together(shapes)), shapes)
        write_params(folder.checkpoints / "0", child.params, child.buffers)
        write_manifest(folder.checkpoints / "0")
        RunFiles.of(configuration(base.config, model)).write(folder)
        if (base.folder.path / IMPORTED).is_dir():
            shutil.copytree(base.folder.path / IMPORTED, path / IMPORTED)
    return model.parameter_count


def configuration(base: TrainConfig, model: DecoderConfig) -> TrainConfig:
    """Return the configuration of the child: that of the first parent with another model, which nobody teaches.

    A model of other layers might not decode, so hooks that do are left out then.
    """
    objective = base.objective if base.model.teacher is None else NextToken()
    hooks = base.hooks if model == plain(base.model) else tuple(hook for hook in base.hooks if not hook.decoded_tokens)
    return dataclasses.replace(base, model=model, initial=Random(), objective=objective, hooks=hooks)


@contextlib.contextmanager
def opened(parents: list[Parent]) -> Iterator[list[ParamTree]]:
    """Yield the parameters and buffers of a valid checkpoint of each run."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                weights_of(one.folder, one.config.model, one.config, weights=None, step=one.step, best=False)
            )[1]
            for one in parents
        ]
