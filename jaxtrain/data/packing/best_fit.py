"""Best-fit packing: only documents longer than a row are cut, and the pieces are packed best-fit decreasing.

Ding et al. (2024), "Fewer Truncations Improve Language Modeling", arXiv:2404.10830. Deviations:

- Pieces of equal length are placed together. The rows are the same as with one piece at a time: the row that just took
  a piece is the tightest fit for the next piece of that length, as long as it has room.
- The tightest row is found with a bit set of the amounts of room that occur, and not with the paper's segment tree.

Every epoch combines the pieces of equal length differently, and puts the one short piece of a long document at another
place in it. The lengths of the pieces are the same in every epoch, and so is the number of rows.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from jaxtrain.data.packing.base import Packing, Plan, shuffled_rows


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BestFit(Packing):
    """No document that fits in a row is cut; with many short documents there is almost no padding."""

    paper: ClassVar[str] = "arXiv:2404.10830"

    def plan(self, lengths: np.ndarray, *, row_length: int, rng: np.random.Generator) -> Plan:
        document, start, length = _pieces(lengths, row_length, rng)
        order = rng.permutation(len(length))
        order = order[np.argsort(-length[order], kind="stable")]
        document, start, length = document[order], start[order], length[order]
        row, rows = best_fit_decreasing(length, capacity=row_length)
        return shuffled_rows(document, start, length, row, rows=rows, rng=rng)


def best_fit_decreasing(lengths: np.ndarray, *, capacity: int) -> tuple[np.ndarray, int]:
    """Put each piece in the fullest row with room for it. Return the row of each piece, and the number of rows.

    `lengths` are in decreasing order.
    """
    row_of = np.empty(len(lengths), np.int64)
    rooms = _Rooms()
    rows = 0
    begins = np.flatnonzero(np.diff(lengths, prepend=capacity + 1))
    for begin, end in zip(begins.tolist(), np.append(begins[1:], len(lengths)).tolist(), strict=True):
        length = int(lengths[begin])
        while begin < end:
            room = rooms.tightest(length)
            each = (room or capacity) // length
            wanted = -(-(end - begin) // each)
            taken = rooms.take(room, wanted) if room else np.arange(rows, rows := rows + wanted)
            filled = np.repeat(taken, each)[: end - begin]
            row_of[begin : begin + len(filled)] = filled
            begin += len(filled)
            in_last = len(filled) - each * (len(taken) - 1)
            rooms.add((room or capacity) - each * length, taken[:-1])
            rooms.add((room or capacity) - in_last * length, taken[-1:])
    return row_of, rows


class _Rooms:
    """Rows by the room that is left in them. Bit r of `_occurs` is set if some row has room r."""

    def __init__(self):
        self._rows: dict[int, list[np.ndarray]] = {}
        self._occurs = 0

    def tightest(self, length: int) -> int:
        """Return the smallest room of a row that is at least `length`, or 0 where there is none."""
        fitting = self._occurs >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else 0

    def add(self, room: int, rows: np.ndarray) -> None:
        if room and len(rows):
            self._rows.setdefault(room, []).append(rows)
            self._occurs |= 1 << room

    def take(self, room: int, wanted: int) -> np.ndarray:
        """Remove and return up to `wanted` rows with this room."""
        rows = np.concatenate(self._rows.pop(room))
        self._occurs &= ~(1 << room)
        self.add(room, rows[wanted:])
        return rows[:wanted]


def _pieces(
    lengths: np.ndarray, row_length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut each document into pieces of a full row and one shorter piece, at a random place among them.

    Return the document, start and length of each piece.
    """
    full, rest = np.divmod(lengths.astype(np.int64), row_length)
    count = full + (rest > 0)
    short_at = rng.integers(0, full + 1)
    document = np.repeat(np.arange(len(lengths)), count)
    piece = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    rest, short_at = rest[document], short_at[document]
    has_short = rest > 0
    length = np.where(has_short & (piece == short_at), rest, row_length)
    start = piece * row_length - np.where(has_short & (piece > short_at), row_length - rest, 0)
    return document, start, length
