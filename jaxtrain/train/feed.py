"""Batches for the step: each process reads the rows its devices need and joins them into one global array.

How far a run has read is the number of rows consumed of each stream. It does not depend on the mesh or on the number of
processes, and stays right when the batch size changes. A stream is a text cut to rows of one sequence length. It is
named by all that decides its rows and a digest of the text, but not by where the text is stored. A phase that reads the
same stream as the one before goes on where that stopped. Text that was edited between a kill and its resume is another
stream, and begins at its first row.
"""

import functools
import zlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxtrain.data import DataConfig, batches_of, describe_batch, open_rows, open_stores, reading, text_digest
from jaxtrain.shapes import Batch
from jaxtrain.sharding import activation_spec
from jaxtrain.train import distributed
from jaxtrain.train.phases import Phase


class Layout:
    """The layout of a [B, L] batch over a mesh, and the rows of it that this process holds."""

    def __init__(self, batch_size: int, sequence_length: int, mesh: Mesh):
        self._shape = (batch_size, sequence_length)
        self._sharding = NamedSharding(mesh, activation_spec(("batch", "length"), self._shape, mesh))
        indices = self._sharding.addressable_devices_indices_map(self._shape).values()
        self.rows = tuple(sorted({row for index in indices if index for row in range(batch_size)[index[0]]}))
        self._place = {row: place for place, row in enumerate(self.rows)}

    def globalise(self, batch: Batch) -> Batch:
        """Return the sharded global batch from this process's rows."""

        def leaf(local: jax.typing.ArrayLike) -> jax.Array:
            return jax.make_array_from_callback(self._shape, self._sharding, self._reader(np.asarray(local)))

        return jax.tree.map(leaf, batch)

    def _reader(self, local: np.ndarray) -> Callable:
        def read(index: tuple[slice, slice]) -> np.ndarray:
            first, end, _ = index[0].indices(self._shape[0])
            return local[self._place[first] : self._place[first] + end - first, index[1]]

        return read


def _check_same_everywhere(stream: str) -> None:
    number = zlib.crc32(stream.encode()) >> 1  # fits in an int32
    if distributed.anywhere(distributed.of_first(number) != number):
        raise ValueError(
            f"the processes of this run do not read the same data, here {stream!r}: give all hosts the same files"
        )


class Feed:
    """The endless batches of a phase, built ahead in the background. `taken` counts rows by stream, and is updated.

    `is_new`: other streams have been read before, but not this one. `text_changed`: one of them differs from this one
    in its text alone.

    Raises:
        ValueError: on every process, if they do not read the same text in the same way.
    """

    def __init__(self, data: DataConfig, phase: Phase, *, seed: int, mesh: Mesh, taken: dict[str, int]):
        self._layout = Layout(phase.batch_size, phase.sequence_length, mesh)
        self.stores = open_stores(data)
        configured = f"{reading(data, sequence_length=phase.sequence_length, seed=seed)}, text "
        self._stream, self._taken = configured + text_digest(self.stores), taken
        _check_same_everywhere(self._stream)
        self.is_new = bool(taken) and self._stream not in taken
        self.text_changed = self.is_new and any(stream.startswith(configured) for stream in taken)
        length, stores = phase.sequence_length, self.stores
        rows = open_rows(data, split="train", sequence_length=length, seed=seed, stores=stores)
        where = {"batch_size": phase.batch_size, "rows_consumed": taken.setdefault(self._stream, 0)}
        self._iterator = batches_of(rows, rows=self._layout.rows, **where)
        self._describe = functools.partial(describe_batch, rows, **where)
        self._rows, self._batches = phase.batch_size, 0

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._batches += 1
        self._taken[self._stream] += self._rows
        return self._layout.globalise(batch)

    def describe(self, *, ago: int) -> str:
        """Return the documents that a batch was made of. It was taken `ago` batches before the last one."""
        return self._describe(batch=self._batches - 1 - ago)
