"""The base class of examples: what a row shows to the model, and what it asks for."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import Batch
from jaxtrain.technique import Technique


class Examples(Technique):
    """A frozen dataclass that makes an example of a packed row, on the host."""

    __slots__ = ()
    asks_for_next: ClassVar[bool] = False  # each token for the one that follows it, as a bigram model can guess
    keeps_weights: ClassVar[bool] = True  # `row.weights` of the tokens that ask, which a source may have given

    @abstractmethod
    def __call__(self, row: Batch, *, vocab_size: int, rng: np.random.Generator) -> Batch:
        """Return the row as the model gets it: its tokens, and targets with weights.

        The leaves have no batch axis. In `row` each token has the next one as its target, and the weight of the loss on
        that target. `vocab_size` is the tokenizer's. The random numbers are the row's own in its epoch, whatever the
        mesh.
        """

    def check(self, model: DecoderConfig) -> None:
        """Raise ValueError where a model cannot have such examples."""
