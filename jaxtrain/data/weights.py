"""The weights of the loss on the tokens of a store, as stretches of one weight. Where all are 1, nothing is stored."""

import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxtrain.data.sources.base import Document

_LARGEST = float(np.finfo(np.float32).max)
FILES = ("weight_ends.npy", "weights.npy")


class Weights:
    """Stretch i ends before token `ends[i]`, and each of its tokens has the weight `values[i]`."""

    def __init__(self, ends: np.ndarray, values: np.ndarray):
        self._ends, self._values = ends, values
        lengths = np.diff(ends, prepend=0)
        self._sums = np.concatenate([np.zeros(1), np.cumsum(lengths * values.astype(np.float64))])
        self._bounds = np.concatenate([np.zeros(1), ends])

    def at(self, tokens: np.ndarray) -> np.ndarray:
        """Return the weights of tokens, by their places in the store."""
        return self._values[np.searchsorted(self._ends, tokens, side="right")]

    @property
    def with_loss(self) -> "Weights":
        """The same with 1 for every weight that is not 0, so that sums count the tokens with loss."""
        return Weights(self._ends, (self._values > 0).astype(np.float32))

    def before(self, tokens: np.ndarray) -> np.ndarray:
        """Return the sum of the weights of all tokens before each place of the store."""
        return np.interp(tokens, self._bounds, self._sums)


class Stretches:
    """The weights of a store that is being written, joined into stretches of one weight."""

    def __init__(self):
        self._lengths, self._values = array.array("q"), array.array("f")

    def add(self, document: Document, part_lengths: Iterable[int]) -> None:
        """Add the weights of the next document, whose parts have so many tokens.

        Raises:
          ValueError: a weight is negative or not finite.
        """
        for part, length in zip(document.parts, part_lengths, strict=True):
            weight = document.weight * part.weight
            if not (document.weight >= 0 <= part.weight and weight <= _LARGEST):
                raise ValueError(
                    f"document {document.key!r} has weight={document.weight} and a part of weight={part.weight}: "
                    "none may be negative and their product must be finite; leave unwanted documents out"
                )
            if not length:
                continue
            self._lengths.append(length)
            self._values.append(weight)
            if self._values[-2:-1] == self._values[-1:]:
                self._values.pop()
                self._lengths.append(self._lengths.pop() + self._lengths.pop())

    @property
    def are_all_one(self) -> bool:
        return len(self._values) == 1 and self._values[0] == 1

    @property
    def are_all_zero(self) -> bool:
        return not any(self._values)

    def bytes(self) -> bytes:
        """Return the weights as bytes, for a digest."""
        return self._lengths.tobytes() + self._values.tobytes()

    def save(self, folder: Path) -> None:
        np.save(folder / FILES[0], np.cumsum(np.array(self._lengths, np.int64)))
        np.save(folder / FILES[1], np.array(self._values, np.float32))


def load(folder: Path) -> Weights:
    return Weights(np.load(folder / FILES[0]), np.load(folder / FILES[1]))
