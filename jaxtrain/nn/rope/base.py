"""The base class of the scalings of rotary embeddings."""

from abc import abstractmethod

import numpy as np

from jaxtrain.technique import Technique


class RopeScaling(Technique):
    """A frozen dataclass that scales the frequencies of rotary embeddings, for longer sequences than before."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, frequencies: np.ndarray, length: int) -> np.ndarray:
        """Return the scaled frequencies for rows of `length` tokens: float64 [K/2], in radians a position.

        The frequencies given are theta^(-2i/K), i = 0, 1, ...
        """

    def amplitude(self) -> float:
        """Return the number that multiplies rotated queries and rotated keys. Scores grow by its square."""
        return 1.0
