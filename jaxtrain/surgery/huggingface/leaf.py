"""Parameters in Hugging Face files, read when they are needed."""

import math
from typing import NamedTuple

import numpy as np

from jaxtrain.surgery.huggingface.layout import View
from jaxtrain.surgery.huggingface.tensor_files import Stored
from jaxtrain.surgery.lazy import Box, LazyLeaf, Rows


class Source(NamedTuple):
    stored: Stored
    view: View


class Leaf(LazyLeaf):
    """A parameter: the sum of views of tensors, mostly of one.

    A stacked one has a view for each repeat, or for each expert of each repeat.
    """

    def __init__(self, sources: list[Source], *, stacked: bool, experts: int | None = None):
        self._sources = sources
        repeats = len(sources) // (experts or 1)
        self._stack = (*((repeats,) if stacked else ()), *(() if experts is None else (experts,)))
        one = self._map(0)
        self.dtype: np.dtype = one.dtype
        self.shape: tuple[int, ...] = (*self._stack, *one.shape)

    def read(self, box: Box = ()) -> np.ndarray:
        """Return the parameter, or a box of it, as a new array. Memory has this array and one mapped tensor."""
        depth = len(self._stack)
        if not depth:
            return np.array(self._map(0)[box])
        asked = (*box[:depth], *(slice(None),) * (depth - len(box)))
        numbers = np.arange(math.prod(self._stack)).reshape(self._stack)[asked]
        whole = np.empty((*numbers.shape, *self._map(0)[box[depth:]].shape), self.dtype)
        for place, number in np.ndenumerate(numbers):
            whole[place] = self._map(number)[box[depth:]]
        return whole

    def rows(self) -> Rows:
        if len(self._stack) == 2:
            return lambda repeat: self.read((slice(repeat or 0, (repeat or 0) + 1),))[0]
        return lambda repeat: self._map(repeat or 0)

    def _map(self, number: int) -> np.ndarray:
        first, *others = [self._sources[number]] if self._stack else self._sources
        array = first.view(first.stored.map())
        for other in others:
            array = array + other.view(other.stored.map())
        return array
