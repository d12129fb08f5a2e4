"""`jaxtrain average RUN --out FOLDER`: a run with a linear combination of a run's checkpoints as its weights.

Coefficients are equal, those of an exponential moving average (`--decay`), or searched (`--search N`): those with the
lowest validation loss of N combinations, in an evolution that begins with the others. A search holds the weights of all
checkpoints in memory, everything else a piece of them at a time.
"""

import argparse
import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.finished import load_run
from jaxtrain.cli.merge import check_is_new, parent, write
from jaxtrain.models.decoder import abstract_model
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.linears import has_plain_linears
from jaxtrain.surgery.merging import Combination, evolved, moving_average
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.evaluation import HELD_OUT, Evaluation, evaluate
from jaxtrain.train.step import make_evaluation_step

Coefficients = tuple[float, ...]  # one for each checkpoint, the oldest first


def run(arguments: argparse.Namespace) -> int:
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    check_is_new(arguments.out)
    one = parent(Path(arguments.run), arguments.import_from)
    steps = chosen_steps(one.folder.path, Checkpoints(one.folder.checkpoints).steps(), arguments)
    coefficients = beginning(len(steps), arguments.decay)
    if arguments.search is not None:
        coefficients = searched(arguments, steps)
    for step, coefficient in zip(steps, coefficients, strict=True):
        print(f"step {step}: {coefficient:+.4f}")
    count = write(Combination(coefficients=coefficients), [one._replace(step=step) for step in steps], arguments.out)
    print(f"{count:,} parameters of {len(steps)} checkpoints; the run is in {arguments.out}")
    return 0


def chosen_steps(path: Path, there: list[int], arguments: argparse.Namespace) -> list[int]:
    """Return the steps of the checkpoints to combine, oldest first.

    Raises:
        ValueError: there are none, or not those that were asked for.
    """
    listed = ", ".join(map(str, there)) or "none"
    if arguments.steps:
        steps = sorted(set(arguments.steps))
        if missing := [step for step in steps if step not in there]:
            raise ValueError(f"--steps={missing[0]}: {path} has no checkpoint of that step; it has {listed}")
        return steps
    if arguments.window < 1:
        raise ValueError(f"--window={arguments.window}: must be at least 1")
    if arguments.window > len(there):
        raise ValueError(
            f"--window={arguments.window}: {path} has {len(there)} checkpoints, {listed}; take fewer, or train with "
            "Checkpoint(keep_last=...)"
        )
    return there[-arguments.window :]


def beginning(checkpoints: int, decay: float | None) -> Coefficients:
    """Return equal coefficients, or those of a moving average."""
    if decay is None:
        return (1 / checkpoints,) * checkpoints
    if not 0 <= decay < 1:
        raise ValueError(f"--decay={decay}: must be in [0, 1)")
    return moving_average(decay, checkpoints)


def searched(arguments: argparse.Namespace, steps: list[int]) -> Coefficients:
    """Return the coefficients with the lowest validation loss of so many combinations, and print what they gain."""
    count = len(steps)
    if count < 2:
        raise ValueError(f"--search={arguments.search}: there is one checkpoint, and a search combines two or more")
    model = parent(Path(arguments.run), arguments.import_from).config.model
    if abstract_model(model).shapes.buffers or not has_plain_linears(model):
        raise ValueError(
            f"--search={arguments.search}: the model has buffers, adapters or quantized weights, which are not "
            "combined as its parameters are; leave --search out, or search the merged run of `jaxtrain convert`"
        )
    seeds = [(0.0,) * (count - 1) + (1.0,), beginning(count, None)]
    seeds += [beginning(count, decay) for decay in (arguments.decay, 0.5, 0.9) if decay is not None]
    if arguments.search < len(seeds):
        raise ValueError(f"--search={arguments.search}: must be at least {len(seeds)}, the combinations it begins with")
    keep_compilations()
    runs = [load_run(arguments.run, step=step, import_from=arguments.import_from) for step in steps]
    weights = [one.model.params for one in runs]
    last = runs[-1]
    objective = last.config.recipe.objective_of(last.phase)
    step = make_evaluation_step(abstract_model(last.config.model).graph, objective)
    rows = last.validation_sets.get(HELD_OUT) or next(iter(last.validation_sets.values()))

    @functools.cache
    def measured(coefficients: Coefficients) -> Evaluation:
        model = last.model._replace(params=_combined(weights, jnp.asarray(coefficients, jnp.float32)))
        options = {"batch_size": last.phase.batch_size, "batches": arguments.batches, "mesh": last.mesh}
        return evaluate(step, objective, model, rows, **options)

    found = evolved(lambda own: measured(own).loss, seeds, evaluations=arguments.search)
    for name, own in (("the last checkpoint", seeds[0]), ("the mean", seeds[1]), ("found", found)):
        print(f"validation loss {measured(own).loss:.4f}: {name}")
    return found


@jax.jit
def _combined(weights: list[ParamTree], coefficients: jax.Array) -> ParamTree:
    def leaf(*parents: jax.Array) -> jax.Array:
        terms = [c * w.astype(jnp.float32) for c, w in zip(coefficients, parents, strict=True)]
        return functools.reduce(jnp.add, terms).astype(parents[-1].dtype)

    return jax.tree.map(leaf, *weights)
