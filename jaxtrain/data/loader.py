"""The iterator that training reads: batch s is B rows of the global order, from row `rows_consumed + s B` on.

Every process reads only the rows that it needs. The state of its iterator is the number of batches consumed, which is
the same on every process and for any number of processes. Rows are read from a memory map by index, so the global
shuffle costs nothing. Background threads build whole batches ahead of time and out of order, and deliver them in order
(RINAS, Zhong et al. (2023), arXiv:2312.02368, reorders inside a batch instead, which saves nothing once batches
overlap).
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxtrain.data.config import DataConfig
from jaxtrain.data.rows import Rows, open_rows
from jaxtrain.data.source_rows import blank_row
from jaxtrain.data.split import Split
from jaxtrain.shapes import Batch

if TYPE_CHECKING:
    import grain

_ENDLESS = 1 << 40  # batches; grain multiplies lengths, and sys.maxsize would overflow
_READ_AHEAD = {"num_threads": 4, "prefetch_buffer_size": 4}  # in batches, which can be large


def loader(
    config: DataConfig,
    *,
    split: Split,
    batch_size: int,
    sequence_length: int,
    seed: int,
    rows: Sequence[int] | None = None,
    rows_consumed: int = 0,
    num_epochs: int | None = None,
) -> "grain.DatasetIterator[Batch]":
    """Return an iterator over batches of numpy arrays, with get_state() and set_state().

    Args:
      config: what to read.
      split: 'train' or 'validation'.
      batch_size: rows of the global batch.
      sequence_length: tokens of a row.
      seed: of the shuffle. Use a constant for validation, so that every run is measured on the same batches.
      rows: which rows of each global batch to build, in this order; all of them by default.
      rows_consumed: rows of the global order already consumed, for a phase that continues with another batch size.
      num_epochs: passes over the split; endless by default. The last batch is filled up with rows of weight 0.

    Raises:
      ValueError: an argument is out of range, or the split has no text.
    """
    every = open_rows(config, split=split, sequence_length=sequence_length, seed=seed, num_epochs=num_epochs)
    return batches_of(every, batch_size=batch_size, rows=rows, rows_consumed=rows_consumed)


def batches_of(
    every: Rows, *, batch_size: int, rows: Sequence[int] | None = None, rows_consumed: int = 0
) -> "grain.DatasetIterator[Batch]":
    """Return the iterator of `loader` over rows that are already open. The arguments have the same meaning."""
    import grain  # which takes half a second, and which reading a configuration does not need

    rows = range(batch_size) if rows is None else rows
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise ValueError(f"{rows=} must name at least one row, each from 0 to {batch_size=} - 1.")
    if rows_consumed < 0:
        raise ValueError(f"{rows_consumed=} must not be negative.")
    part = _PartOfBatches(every, batch_size, tuple(rows), rows_consumed)
    batches = grain.MapDataset.source(part).batch(len(rows), batch_fn=_stack)
    return iter(batches.to_iter_dataset(grain.ReadOptions(**_READ_AHEAD)))


def describe_batch(every: Rows, *, batch_size: int, batch: int, rows_consumed: int = 0) -> str:
    """Return a text with a line for each row of a batch: the tokens and documents in it.

    The batch is the one that `batches_of` gives with these arguments.
    """
    first = rows_consumed + batch * batch_size
    numbers = range(first, min(first + batch_size, len(every)))
    lines = [f"  row {number - first}: {every.describe(number)}" for number in numbers]
    return "\n".join([f"batch {batch} of {every.name} (rows {first} to {first + batch_size - 1}):", *lines])


class _PartOfBatches:
    """The chosen rows of all batches, as one sequence. Rows past the end are blank."""

    def __init__(self, every: Rows, batch_size: int, chosen: tuple[int, ...], rows_consumed: int):
        self._every = every
        self._batch_size = batch_size
        self._chosen = chosen
        self._rows_consumed = rows_consumed

    def __len__(self) -> int:
        if len(self._every) == sys.maxsize:
            return _ENDLESS * len(self._chosen)
        return -(-(len(self._every) - self._rows_consumed) // self._batch_size) * len(self._chosen)

    def __getitem__(self, index: int) -> Batch:
        batch, position = divmod(index, len(self._chosen))
        row = self._rows_consumed + batch * self._batch_size + self._chosen[position]
        return self._every[row] if row < len(self._every) else blank_row(self._every.sequence_length)


def _stack(rows: Sequence[Batch]) -> Batch:
    hints = {name: np.stack([row.hints[name] for row in rows]) for name in rows[0].hints}  # type: ignore[misc]
    # A Batch is of numpy arrays up to the step, and annotated for the step.
    return Batch(*(np.stack(column) for column in zip(*(row[:-1] for row in rows), strict=True)), hints)  # type: ignore
