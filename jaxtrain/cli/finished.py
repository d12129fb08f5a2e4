"""A run folder and its model, which eval, generate, convert and `jaxtrain.runs` use."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.cli.neighbours import check_exists
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.record.files import remarks
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train import distributed
from jaxtrain.train.evaluation import (
    HELD_OUT,
    Evaluation,
    Track,
    ValidationRows,
    evaluate,
    untracked,
    validation_sets,
)
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import read_metrics
from jaxtrain.train.needs import check_evaluation
from jaxtrain.train.phases import Phase
from jaxtrain.train.step import make_evaluation_step
from jaxtrain.train.trained import trained_model


class FinishedRun(NamedTuple):
    """The model of a run at one of its steps, laid out over devices."""

    config: TrainConfig
    folder: RunFolder
    mesh: Mesh
    step: int
    model: ModelState

    @property
    def phase(self) -> Phase:
        """The last phase, whose data and sizes the run is used with."""
        return self.config.phases[-1]

    @property
    def data(self) -> DataConfig:
        return self.phase.data or self.config.data

    @property
    def metrics(self) -> list[dict[str, float]]:
        """What was measured, a record for each step."""
        return read_metrics(self.folder.metrics)

    def evaluate(self, *, batches: int | None = None, on: str = HELD_OUT) -> Evaluation:
        """Evaluate on the first `batches` batches of a validation set, or on all of it.

        `on` is the name of the set; by default it is the held-out part of the run's text.

        Raises:
            ValueError: there is no such set, too little memory for it, or `batches` is less than 1.
        """
        sets = self.validation_sets
        if on not in sets:
            named = ", ".join(repr(name) for name in sets)
            raise ValueError(f"{on=}: the run has no such validation set, but {named}")
        return self.evaluate_on(sets[on], batches=batches)

    @property
    def validation_sets(self) -> dict[str, ValidationRows]:
        """The rows to evaluate on, by the names of the validation sets. The held-out text is HELD_OUT."""
        return validation_sets(self.data, self.config.validation, sequence_length=self.phase.sequence_length)

    def evaluate_on(self, rows: ValidationRows, *, batches: int | None = None, track: Track = untracked) -> Evaluation:
        """Evaluate on the first `batches` batches of some rows, or on all of them. `track` is told of every batch."""
        if batches is not None and batches < 1:
            raise ValueError(f"{batches=}: must be at least 1")
        check_evaluation(self.config.model, self.phase, list(self.mesh.devices.flat))
        objective = self.config.recipe.objective_of(self.phase)
        return evaluate(
            make_evaluation_step(abstract_model(self.config.model).graph, objective),
            objective,
            self.model,
            rows,
            batch_size=self.phase.batch_size,
            batches=batches,
            mesh=self.mesh,
            track=track,
        )

    def generate(self, prompt: str, **options) -> str:
        """Return a prompt and its continuation. The options are those of `continuations`."""
        [text] = self.continuations([prompt], **options)
        return text

    def continuations(
        self,
        prompts: Sequence[str],
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Return each prompt and its continuation by up to `tokens` tokens, of one batch.

        Raises:
            ValueError: an option is out of range, a prompt is empty, or the model cannot continue so many tokens.
        """
        if tokens < 1:
            raise ValueError(f"{tokens=}: must be at least 1")
        if not 0 <= seed < 2**63:
            raise ValueError(f"{seed=}: must be from 0 to 2^63 - 1")
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        tokenizer = self.data.tokenizer
        ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
        with jax.set_mesh(self.mesh):
            written = generate(
                abstract_model(self.config.model).graph,
                self.model,
                ids,
                tokens=tokens,
                sampling=sampling,
                key=jax.random.key(seed),
                stop_token=tokenizer.end_of_document_id,
            )
        return [tokenizer.decode(prompt + new) for prompt, new in zip(ids, written, strict=True)]


def load_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    best: bool = False,
    weights: str | None = None,
    import_from: Sequence[str | Path] = (),
) -> FinishedRun:
    """Return a run, at its latest checkpoint, at that of `step`, or at the best one.

    `weights` names an average that the run kept. `overrides` change its configuration, as `--set` does; `import_from`
    are folders whose Python modules it may import, as with `--import-from`.

    Raises:
        ValueError: the folder has no run, or no such checkpoint.
    """
    run_folder = RunFolder(Path(folder))
    check_exists(run_folder.path)
    if not run_folder.config.exists():
        raise ValueError(f"{folder}: not the folder of a run, there is no {run_folder.config.name} in it")
    config = load(run_folder.config, overrides, import_from=import_from).config
    print_remarks(run_folder, config)
    mesh, step, model = restored(run_folder, config, weights=weights, step=step, best=best)
    return FinishedRun(config, run_folder, mesh, step, model)


def restored(
    folder: RunFolder, config: TrainConfig, *, weights: str | None, step: int | None, best: bool
) -> tuple[Mesh, int, ModelState]:
    """Return the devices at hand as a mesh, and a step of a run with its model, laid out over them."""
    mesh = mesh_at_hand(config.mesh, config.model)
    found = trained_model(
        folder,
        model=config.model,
        optimizer=config.optimizer,
        hooks=config.hooks,
        mesh=mesh,
        weights=weights,
        step=step,
        best=best,
    )
    return mesh, *found


def open_run(arguments: argparse.Namespace) -> FinishedRun:
    """Return the run that a command was given."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    check_exists(Path(arguments.run))
    keep_compilations()
    distributed.start()
    return load_run(
        arguments.run,
        arguments.set,
        step=arguments.step,
        best=arguments.best,
        weights=arguments.weights,
        import_from=arguments.import_from,
    )


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
