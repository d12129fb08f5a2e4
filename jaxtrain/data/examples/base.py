"""The base class of examples: what a row shows to the model, and what it asks for."""

from abc import abstractmethod

import numpy as np

from jaxtrain.shapes import Batch
from jaxtrain.technique import Technique


class Examples(Technique):
    """A frozen dataclass that makes an example of a packed row, on the host."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, row: Batch, *, vocab_size: int, rng: np.random.Generator) -> Batch:
        """Return the row as the model gets it: its tokens, and targets with weights.

        The leaves have no batch axis. In `row` each token has the next one as its target. `vocab_size` is the
        tokenizer's. The random numbers are the row's own in its epoch, whatever the mesh.
        """

    def check(self, vocab_size: int) -> None:
        """Raise ValueError where a model with this vocabulary cannot have such examples."""
