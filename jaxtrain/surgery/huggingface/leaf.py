"""Parameters in Hugging Face files."""

from typing import NamedTuple

import numpy as np

from jaxtrain.surgery.huggingface.layout import View
from jaxtrain.surgery.huggingface.tensor_files import Stored
from jaxtrain.surgery.lazy import Box, LazyLeaf, Rows


class Source(NamedTuple):
    stored: Stored
    view: View


class Leaf(LazyLeaf):
    """A view of a tensor; where the parameter is stacked, one of a tensor for every repeat."""

    def __init__(self, sources: list[Source], *, stacked: bool):
        self._sources = sources
        self._stacked = stacked
        one = self._map(0)
        self.dtype: np.dtype = one.dtype
        self.shape: tuple[int, ...] = (len(sources), *one.shape) if stacked else one.shape

    def read(self, box: Box = ()) -> np.ndarray:
        """Return the parameter, or a box of it, as a new array: all that is held, but for one mapped tensor."""
        if not self._stacked:
            return np.array(self._map(0)[box])
        repeats = range(len(self._sources))[box[0] if box else slice(None)]
        whole = None
        for i, repeat in enumerate(repeats):
            row = self._map(repeat)[box[1:]]
            whole = np.empty((len(repeats), *row.shape), self.dtype) if whole is None else whole
            whole[i] = row
        return whole

    def rows(self) -> Rows:
        return lambda repeat: self._map(repeat or 0)

    def _map(self, repeat: int) -> np.ndarray:
        source = self._sources[repeat]
        return source.view(source.stored.map())
