"""What a scaling of rotary positions is."""

from abc import abstractmethod

import numpy as np

from jaxtrain.technique import Technique


class RopeScaling(Technique):
    """A frozen dataclass that scales the frequencies of rotary positions, for longer sequences than before."""

    __slots__ = ()

    @abstractmethod
    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Return the frequencies scaled: float64 [K/2], radians a position."""
