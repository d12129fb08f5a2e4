"""Parameters in Hugging Face files, read when they are needed."""

from typing import NamedTuple

import numpy as np

from jaxtrain.surgery.huggingface.layout import View
from jaxtrain.surgery.huggingface.tensor_files import Stored
from jaxtrain.surgery.lazy import Box, LazyLeaf, Rows


class Source(NamedTuple):
    stored: Stored
    view: View


class Leaf(LazyLeaf):
    """A parameter: the sum of views of tensors, mostly of one. A stacked one has a view for each repeat."""

    def __init__(self, sources: list[Source], *, stacked: bool):
        self._sources = sources
        self._stacked = stacked
        one = self._map(0)
        self.dtype: np.dtype = one.dtype
        self.shape: tuple[int, ...] = (len(sources), *one.shape) if stacked else one.shape

    def read(self, box: Box = ()) -> np.ndarray:
        """Return the parameter, or a box of it, as a new array. Memory has this array and one mapped tensor."""
        if not self._stacked:
            return np.array(self._map(0)[box])
        repeats = range(len(self._sources))[box[0] if box else slice(None)]
        whole = np.empty((len(repeats), *self._map(0)[box[1:]].shape), self.dtype)
        for i, repeat in enumerate(repeats):
            whole[i] = self._map(repeat)[box[1:]]
        return whole

    def rows(self) -> Rows:
        return lambda repeat: self._map(repeat or 0)

    def _map(self, repeat: int) -> np.ndarray:
        first, *others = [self._sources[repeat]] if self._stacked else self._sources
        array = first.view(first.stored.map())
        for other in others:
            array = array + other.view(other.stored.map())
        return array
