"""A teacher that is the model of another run."""

from dataclasses import dataclass
from typing import ClassVar

from jax.sharding import Mesh

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.teacher import Teacher
from jaxtrain.paths import Folder
from jaxtrain.shapes import ModelState
from jaxtrain.train import initial


@dataclass(frozen=True, kw_only=True, slots=True)
class FromRun(Teacher):
    """The latest weights of the run in the folder `path`.

    `model` is read from the run's configuration where a configuration file leaves it out.
    """

    path: Folder
    model: DecoderConfig | None = None
    paper: ClassVar[str] = "common practice"

    def arrays(self, mesh: Mesh) -> ModelState:
        assert self.model is not None, "a student of it could not be built"
        return initial.FromRun(path=self.path, model=self.model).restored(self.model, mesh)
