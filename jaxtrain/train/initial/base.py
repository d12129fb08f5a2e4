"""The base class of initial weights."""

from abc import abstractmethod
from dataclasses import replace

from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.trees import taught
from jaxtrain.shapes import ModelState
from jaxtrain.technique import Technique


def initial_arrays(initial: "Initial", config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
    """Return the arrays of a new run's model, and of its teacher."""
    model = initial(replace(config, teacher=None), mesh, key)
    return taught(model, config.teacher.arrays(mesh)) if config.teacher and config.teacher.members else model


class Initial(Technique):
    """A frozen dataclass that gives a new run its weights. A run that goes on has those of its checkpoint."""

    __slots__ = ()

    def check(self, config: DecoderConfig) -> None:
        """Raise ValueError where a model cannot have these weights, as far as that shows before they are read."""

    @abstractmethod
    def __call__(self, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
        """Return the arrays of a model, laid out over the mesh. The values do not depend on the mesh."""
