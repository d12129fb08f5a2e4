"""The weights of another run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.paths import Folder
from jaxtrain.shapes import ModelState
from jaxtrain.surgery.linears import plain
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.initial.base import Initial
from jaxtrain.train.initial.same_model import check_same_architecture, check_same_function
from jaxtrain.train.initial.taken_over import layout, taken_over
from jaxtrain.train.manifest import is_finished
from jaxtrain.train.metrics import read_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FromRun(Initial):
    """The latest weights of the run in the folder `path`, or those of a `step`, for the same architecture.

    Linears may be of other kinds, and other parameters trained: adapters are put around the weights, weights are
    quantized, adapters of the other run are merged. `model` is the model of the other run. It is read from the run's
    configuration where it is left out of a configuration file. Keys that change what the weights compute, such as the
    base of rotary embeddings, must be those of the other run, but for those that `changed` names.
    """

    path: Folder
    step: int | None = None
    model: DecoderConfig | None = None
    changed: tuple[str, ...] = ()
    paper: ClassVar[str] = "common practice"

    def check(self, config: DecoderConfig) -> None:
        if self.model is not None:
            self._model_for(config)

    def __call__(self, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
        source = self._model_for(config)
        model = self.restored(source, mesh)
        return model if source == config else taken_over(model, source, config, mesh, key)

    def restored(self, source: DecoderConfig, mesh: Mesh) -> ModelState:
        """Return the arrays of the latest valid checkpoint, or of that of `step`.

        Raises:
            ValueError: there is none, or it is of another model.
        """
        target = _target(source, mesh)
        with Checkpoints(RunFolder(Path(self.path)).checkpoints) as checkpoints:
            return checkpoints.restore_model(self._chosen(checkpoints), target)

    def last_rate(self) -> float:
        """Return the learning rate of the step that led to the weights, for schedules that begin with it.

        Raises:
            ValueError: there is no such checkpoint, or the metrics of the run do not have the step.
        """
        folder = RunFolder(Path(self.path))
        # The folder alone is read: a configuration is loaded before processes meet.
        found = [path for path in folder.checkpoints.glob("[0-9]*") if path.name.isdecimal() and is_finished(path)]
        steps = sorted(int(path.name) for path in found)
        if not steps or self.step not in (None, *steps):
            there = f"it has those of {', '.join(map(str, steps))}" if steps else "train it first"
            of_step = "" if self.step is None else f" of step={self.step}"
            raise ValueError(f"path={self.path!r}: the run has no finished checkpoint{of_step}; {there}")
        step = steps[-1] if self.step is None else self.step
        records = read_metrics(folder.metrics)
        rates = [record["learning_rate"] for record in records if record["step"] == step and "learning_rate" in record]
        if not rates:
            raise ValueError(
                f"path={self.path!r}: {folder.metrics.name} has no learning rate of step {step}, which the checkpoint "
                "is of; give the rate itself, begin=..."
            )
        return rates[-1]

    def _chosen(self, checkpoints: Checkpoints) -> int:
        step = checkpoints.chosen(self.step, best=False, best_by=None)
        if step is None:
            raise ValueError(f"path={self.path!r}: the run has no finished checkpoint; train it first")
        return step

    def _model_for(self, config: DecoderConfig) -> DecoderConfig:
        """Return the model of the other run. Raises ValueError where it differs in more than linears and `changed`."""
        if self.model is None:
            log.warning(
                "path=%r: the run's model is not given, so nothing but shapes is compared with it; "
                "give model=load_run(%r).config.model",
                self.path,
                self.path,
            )
            return plain(config)  # whose shapes the restore compares
        check_same_architecture(self.model, config, path=self.path, what="a run")
        check_same_function(self.model, config, path=self.path, owner="the run", changed=self.changed)
        return self.model


def _target(config: DecoderConfig, mesh: Mesh) -> ModelState:
    shapes = abstract_model(config).shapes
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, layout(config, mesh))
