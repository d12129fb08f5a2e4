"""The interface of packing: the choice which part of which document goes into which row.

Packing is computed from lengths alone and reads no token. A length is a number of (token, next token) pairs: a document
of n tokens has n - 1 pairs, a row of length L has up to L. A piece (document, start, length) has the pairs start ..
start + length - 1, and so the tokens start .. start + length. The token at a cut is the last target of one piece and
the first input of the next. So every pair is in exactly one piece, every token that is not padding has loss, and no
piece needs a token of another document.
"""

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from jaxtrain.technique import Technique


class Plan(NamedTuple):
    """The pieces of an epoch: row r has pieces offsets[r] .. offsets[r + 1] - 1. A piece takes 24 bytes of memory."""

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
    """Return the plan that puts piece i in row row[i], with rows in random order and the pieces of a row in order."""
    row = rng.permutation(rows)[row]
    order = np.argsort(row, kind="stable")
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(row, minlength=rows))])
    return Plan(document[order], start[order], length[order], offsets)
