"""The base class of teachers: models whose predictions another one learns from."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtrain.shapes import ModelState
from jaxtrain.technique import Technique


class Hints(Protocol):
    """The hints of rows, by the index of the row."""

    def __getitem__(self, row: int) -> Mapping[str, np.ndarray]: ...


class Teacher(Technique):
    """A frozen dataclass that names a model and gives its arrays. Nothing trains them, and checkpoints hold them once.

    A subclass has the field `model`, a DecoderConfig or None. A configuration file may leave it out where the teacher's
    own says it. Or no model is there (`members` is 0), and what it said is stored: batches then bring it as hints.
    """

    __slots__ = ()
    model: Any

    @property
    def members(self) -> int:
        """The number of models of the architecture `model` that predict together. More than one are stacked."""
        return 1

    @property
    def vocab_size(self) -> int | None:
        """The number of words that it knows; None where that is not known."""
        return self.model.vocab_size if self.model else None

    @property
    def given(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """The hints of a token that are stored."""
        return {}

    def hints(self, stream: str, rows: int) -> Hints | None:
        """Return the stored hints of a stream's rows, by the number of the row; None where a model is there.

        Raises:
            ValueError: those of the first `rows` rows are not all there.
        """
        return None

    @abstractmethod
    def arrays(self, mesh: Mesh) -> ModelState:
        """Return the arrays of the model, laid out over the mesh."""
