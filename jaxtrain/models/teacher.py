"""The base class of teachers: models whose predictions another one learns from."""

from abc import abstractmethod
from typing import Any

from jax.sharding import Mesh

from jaxtrain.shapes import ModelState
from jaxtrain.technique import Technique


class Teacher(Technique):
    """A frozen dataclass that names a model and gives its arrays. Nothing trains them, and checkpoints hold them once.

    A subclass has the field `model`, a DecoderConfig or None. A configuration file may leave it out where the teacher's
    own says it.
    """

    __slots__ = ()
    model: Any

    @property
    def members(self) -> int:
        """The number of models of the architecture `model` that predict together. More than one are stacked."""
        return 1

    @abstractmethod
    def arrays(self, mesh: Mesh) -> ModelState:
        """Return the arrays of the model, laid out over the mesh."""
