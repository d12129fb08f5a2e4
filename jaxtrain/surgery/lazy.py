"""Parameters that are not in memory yet, and are read when they are needed."""

import abc
import math
from collections.abc import Callable

import numpy as np

Box = tuple[slice, ...]
Rows = Callable[[int | None], np.ndarray]  # a repeat of a stacked parameter, or None for all of it, to its values


class LazyLeaf(abc.ABC):
    """One parameter; a leaf of a tree of parameters, in the place of its array."""

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
        """Return a function that gives the values; what had to be read for it is held as long as the function is."""
