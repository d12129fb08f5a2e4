"""Batches for the step: each process reads the rows its devices need and joins them into one global array.

How far a run has read is the number of rows consumed of each stream. It does not depend on the mesh or on the number of
processes, and stays right when the batch size changes. A stream is a text cut to rows of one sequence length. It is
named by all that decides its rows and a digest of the text, but not by where the text is stored. A phase that reads the
same stream as the one before goes on where that stopped. Text that was edited between a kill and its resume is another
stream, and begins at its first row.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxtrain.data import DataConfig, batches_of, describe_batch, open_rows, open_stores, stream_of
from jaxtrain.data.store import TokenStore
from jaxtrain.models.teacher import Teacher
from jaxtrain.shapes import Batch
from jaxtrain.sharding import activation_spec
from jaxtrain.train import distributed
from jaxtrain.train.phases import Phase, remaining


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

        def leaf(local: np.ndarray) -> jax.Array:
            shape = (*self._shape, *local.shape[2:])
            return jax.make_array_from_callback(shape, self._sharding, self._reader(local))

        return jax.tree.map(leaf, batch)

    def _reader(self, local: np.ndarray) -> Callable:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            first, end, _ = index[0].indices(self._shape[0])
            return local[self._place[first] : self._place[first] + end - first, *index[1:]]

        return read


def _check_same_everywhere(stream: str) -> None:
    number = zlib.crc32(stream.encode()) >> 1  # fits in an int32
    if distributed.anywhere(distributed.of_first(number) != number):
        raise ValueError(
            f"the processes of this run do not read the same data, here {stream!r}: give all hosts the same files"
        )


class Taken(NamedTuple):
    """A stream, and the number of its rows that a run takes."""

    stream: str
    rows: int
    data: DataConfig
    stores: Sequence[TokenStore]
    sequence_length: int
    batch_size: int


def rows_taken(
    phases: Sequence[Phase],
    data: DataConfig,
    seed: int,
    *,
    start: int = 0,
    before: Mapping[str, int] = MappingProxyType({}),
) -> list[Taken]:
    """Return what a run takes of each stream: the rows that it took `before` step `start`, and those of later steps."""
    found: dict[str, Taken] = {}
    for span in remaining(tuple(phases), start):
        phase, steps = span.phase, max(span.end - max(span.first, start), 0)
        own, length = phase.data or data, phase.sequence_length
        stores = open_stores(own)
        stream = stream_of(own, stores, sequence_length=length, seed=seed)
        sofar = found.get(stream, Taken(stream, before.get(stream, 0), own, stores, length, phase.batch_size))
        found[stream] = sofar._replace(rows=sofar.rows + steps * phase.batch_size)
    return list(found.values())


class Feed:
    """The endless batches of a phase, built ahead in the background. `taken` counts rows by stream, and is updated.

    `stream` is the name of what is read. `is_new`: other streams have been read before, but not this one.
    `text_changed`: one of them differs from this one in its text alone. A `teacher` may have hints of the rows.

    Raises:
        ValueError: on every process, if they do not read the same text in the same way.
    """

    def __init__(
        self,
        data: DataConfig,
        phase: Phase,
        *,
        seed: int,
        mesh: Mesh,
        taken: dict[str, int],
        teacher: Teacher | None = None,
    ):
        self._layout = Layout(phase.batch_size, phase.sequence_length, mesh)
        self.stores = open_stores(data)
        length, stores = phase.sequence_length, self.stores
        configured = stream_of(data, (), sequence_length=length, seed=seed)
        self.stream, self._taken = stream_of(data, stores, sequence_length=length, seed=seed), taken
        _check_same_everywhere(self.stream)
        self.is_new = bool(taken) and self.stream not in taken
        self.text_changed = self.is_new and any(stream.startswith(configured) for stream in taken)
        hints = teacher.hints(self.stream, 0) if teacher else None
        rows = open_rows(data, split="train", sequence_length=length, seed=seed, stores=stores, hints=hints)
        where = {"batch_size": phase.batch_size, "rows_consumed": taken.setdefault(self.stream, 0)}
        self._iterator = batches_of(rows, rows=self._layout.rows, **where)
        self._describe = functools.partial(describe_batch, rows, **where)
        self._rows, self._batches = phase.batch_size, 0

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._batches += 1
        self._taken[self.stream] += self._rows
        return self._layout.globalise(batch)

    def describe(self, *, ago: int) -> str:
        """Return the documents that a batch was made of. It was taken `ago` batches before the last one."""
        return self._describe(batch=self._batches - 1 - ago)
