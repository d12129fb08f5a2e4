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

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FromRun(Initial):
    """The latest weights of the run in the folder `path`, for the same architecture.

    Linears may be of other kinds, and other parameters trained: adapters are put around the weights, weights are
    quantized, adapters of the other run are merged. `model` is the model of the other run. It is read from the run's
    configuration where it is left out of a configuration file. Keys that change what the weights compute, such as the
    base of rotary embeddings, must be those of the other run, but for those that `changed` names.
    """

    path: Folder
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
        """Return the arrays of the latest valid checkpoint.

        Raises:
            ValueError: there is none, or it is of another model.
        """
        target = _target(source, mesh)
        with Checkpoints(RunFolder(Path(self.path)).checkpoints) as checkpoints:
            step = checkpoints.latest_valid()
            if step is None:
                raise ValueError(f"path={self.path!r}: the run has no finished checkpoint; train it first")
            return checkpoints.restore_model(step, target)

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
