"""The base class of the scalings of rotary embeddings."""

from abc import abstractmethod

import numpy as np

from jaxtrain.technique import Technique


class RopeScaling(Technique):
    """A frozen dataclass that scales the frequencies of rotary embeddings, for longer sequences than before."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the scaled frequencies: float64 [K/2], in radians a position."""
