"""Concatenate and split: documents in random order, end to end, cut into rows of L. Only the last row has padding.

In every epoch the stream begins at a random place of the first document, and ends with that document's beginning.
Otherwise a source of one document would be cut at the same places in every epoch.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxtrain.data.packing.base import Packing, Plan, shuffled_rows


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConcatenateAndSplit(Packing):
    """Every row but the last is full; in about every row a document is cut that would fit into one."""

    paper: ClassVar[str] = "common practice"

    def plan(self, lengths: np.ndarray, *, row_length: int, rng: np.random.Generator) -> Plan:
        document, start, length = _stream(lengths, rng)
        ends = np.cumsum(length)
        total = int(ends[-1])
        piece_ends = np.union1d(ends, np.arange(row_length, total, row_length))
        piece_starts = np.concatenate([np.zeros(1, np.int64), piece_ends[:-1]])
        stretch = np.searchsorted(ends, piece_starts, side="right")
        offset = piece_starts - (ends - length)[stretch]
        return shuffled_rows(
            document[stretch],
            start[stretch] + offset,
            piece_ends - piece_starts,
            piece_starts // row_length,
            rows=-(-total // row_length),
            rng=rng,
        )


def _stream(lengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the document, start and length of the stream's parts: documents shuffled, the first one rotated."""
    document = rng.permutation(len(lengths))
    length = lengths[document].astype(np.int64)
    begin = int(rng.integers(length[0]))
    start = np.zeros_like(length)
    start[0], length[0] = begin, length[0] - begin
    if not begin:
        return document, start, length
    return np.append(document, document[0]), np.append(start, 0), np.append(length, begin)
