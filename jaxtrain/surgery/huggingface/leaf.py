"""Parameters that are not in memory yet."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxtrain.surgery.huggingface.layout import View
from jaxtrain.surgery.huggingface.tensor_files import Stored

Rows = Callable[[int | None], np.ndarray]  # a repeat of a stacked parameter, or None for the whole, to its values


class LazyLeaf(abc.ABC):
    """A parameter that is read when it is needed."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def rows(self) -> Rows:
        """Return a function that gives the values; what had to be read for it is held as long as the function is."""


class Source(NamedTuple):
    stored: Stored
    view: View


class Leaf(LazyLeaf):
    """A parameter in Hugging Face files. One that is stacked has a source for every repeat."""

    def __init__(self, sources: list[Source], *, stacked: bool):
        self._sources = sources
        self._stacked = stacked
        one = sources[0].view(sources[0].stored.map())
        self.dtype: np.dtype = one.dtype
        self.shape: tuple[int, ...] = (len(sources), *one.shape) if stacked else one.shape

    def rows(self) -> Rows:
        return lambda repeat: self._map(self._sources[repeat or 0])

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Return the parameter, or a box of it, as a new array: all that is held, but for one mapped tensor."""
        if not self._stacked:
            return np.array(self._map(self._sources[0])[index])
        sources = self._sources[index[0]] if index else self._sources
        whole = None
        for i, source in enumerate(sources):
            row = self._map(source)[index[1:]]
            whole = np.empty((len(sources), *row.shape), self.dtype) if whole is None else whole
            whole[i] = row
        return whole

    @staticmethod
    def _map(source: Source) -> np.ndarray:
        return source.view(source.stored.map())
