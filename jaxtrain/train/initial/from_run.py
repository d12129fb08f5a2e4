"""The weights of another run."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.paths import Folder
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.surgery.linears import converted, plain
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.initial.base import Initial
from jaxtrain.train.state import initial_model


@dataclass(frozen=True, kw_only=True, slots=True)
class FromRun(Initial):
    """The latest weights of the run in the folder `path`, for the same architecture.

    Linears may be of other kinds, and other parameters trained: adapters are put around the weights, weights are
    quantized, adapters of the other run are merged. `model` is the model of the other run. It is read from the run's
    configuration where it is left out of a configuration file.
    """

    path: Folder
    model: DecoderConfig | None = None
    paper: ClassVar[str] = "common practice"

    def __call__(self, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
        source = self._model_for(config)
        layouts = {of: _layout(of, mesh) for of in (source, config)}
        model = self.restored(source, mesh)
        if source == config:
            return model

        def take_over(model: ModelState, key: Key[Array, ""]) -> ModelState:
            return converted(model, source, config, initial_model(config, key))

        with jax.set_mesh(mesh):
            return jax.jit(take_over, out_shardings=layouts[config])(model, key)

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
        """Return the model of the other run. Raises ValueError where it differs in more than linears."""
        source = self.model or plain(config)
        ours, theirs = (flatten_dict(abstract_model(plain(of)).shapes.params) for of in (config, source))
        for path in {**ours, **theirs}:
            one, other = (of[path].shape if path in of else None for of in (ours, theirs))
            if one != other:
                raise ValueError(
                    f"path={self.path!r}: it is a run of another architecture, whose {'.'.join(map(str, path))} is "
                    f"{other} where the model has {one}; give the model that run's architecture"
                )
        return source


def _layout(config: DecoderConfig, mesh: Mesh) -> ModelState:
    _, shapes, axes = abstract_model(config)
    return shardings(axes, shapes, mesh)


def _target(config: DecoderConfig, mesh: Mesh) -> ModelState:
    _, shapes, axes = abstract_model(config)
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, shardings(axes, shapes, mesh)
    )
