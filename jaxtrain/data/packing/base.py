"""What packing is: which stretch of which document goes into which row. Lengths only, no token is touched.

A length is a number of (token, next token) pairs: a document of n tokens has n - 1, a row of length L holds up to L.
A piece (document, start, length) covers the pairs start .. start + length - 1, that is tokens start .. start + length:
the token at a cut is the last target of one piece and the first input of the next. So every pair is in exactly one
piece, every slot that is not padding bears loss, and no piece asks for a token of another document.
"""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from jaxtrain.technique import Technique


class Plan(NamedTuple):
    """The pieces of an epoch: row r holds pieces offsets[r] .. offsets[r + 1] - 1. 24 bytes of memory a piece."""

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    offsets: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the documents, starts and lengths of a row's pieces."""
        pieces = slice(self.offsets[index], self.offsets[index + 1])
        return self.document[pieces], self.start[pieces], self.length[pieces]


class Packing(Technique):
    """A way to fill rows. Subclasses are frozen dataclasses of plain fields, one file each."""

    __slots__ = ()

    @abstractmethod
    def plan(self, lengths: np.ndarray, *, row_length: int, rng: np.random.Generator) -> Plan:
        """Return one epoch of rows in random order. The number of rows depends on the lengths only, not on `rng`."""


def shuffled_rows(
    document: np.ndarray, start: np.ndarray, length: np.ndarray, row: np.ndarray, *, rows: int, rng: np.random.Generator
) -> Plan:
    """Return the plan that puts each piece in its row, rows in random order, pieces of a row in the order given."""
    row = rng.permutation(rows)[row]
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row, minlength=rows))])
    return Plan(document[order], start[order], length[order], offsets)
