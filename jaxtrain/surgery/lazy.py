"""Parameters that are not in memory, and are read when they are needed."""

import abc
import math
from collections.abc import Callable

import numpy as np

Box = tuple[slice, ...]
Rows = Callable[[int | None], np.ndarray]  # from a repeat of a stacked parameter, or None for the whole, to its values


class LazyLeaf(abc.ABC):
    """One parameter: a leaf of a parameter tree in place of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.size * self.dtype.itemsize

    @abc.abstractmethod
    def read(self, box: Box = ()) -> np.ndarray:
        """Return the parameter, or a box of it, as a new array."""

    @abc.abstractmethod
    def rows(self) -> Rows:
        """Return a function that returns values of the parameter. Values that it has read stay in memory with it."""
