"""Batches for the step: each process reads the rows its devices need and joins them into one global array."""

from collections.abc import Callable

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxtrain.data import DataConfig, describe_batch, loader
from jaxtrain.mesh import activation_spec
from jaxtrain.shapes import Batch
from jaxtrain.train.phases import Phase


class Layout:
    """How a [B, L] batch lies over a mesh, and which of its rows this process holds."""

    def __init__(self, batch_size: int, sequence_length: int, mesh: Mesh):
        self._shape = (batch_size, sequence_length)
        self._sharding = NamedSharding(mesh, activation_spec(("batch", "length"), self._shape, mesh))
        slices = self._sharding.addressable_devices_indices_map(self._shape).values()
        self.rows = tuple(sorted({row for rows, _ in slices for row in range(batch_size)[rows]}))
        self._place = {row: place for place, row in enumerate(self.rows)}

    def globalise(self, batch: Batch) -> Batch:
        """Return the sharded global batch from this process's rows."""

        def leaf(local: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(self._shape, self._sharding, self._reader(local))

        return Batch(*map(leaf, batch))

    def _reader(self, local: np.ndarray) -> Callable:
        def read(index: tuple[slice, slice]) -> np.ndarray:
            first, end, _ = index[0].indices(self._shape[0])
            return local[self._place[first] : self._place[first] + end - first, index[1]]

        return read


class Feed:
    """The endless batches of a phase, built ahead in the background; its state is the number taken."""

    def __init__(self, data: DataConfig, phase: Phase, *, seed: int, mesh: Mesh, rows_before: int):
        self._layout = Layout(phase.batch_size, phase.sequence_length, mesh)
        self._data, self._phase, self._seed, self._rows_before = data, phase, seed, rows_before
        self._iterator: grain.DatasetIterator = loader(
            data,
            split="train",
            batch_size=phase.batch_size,
            sequence_length=phase.sequence_length,
            seed=seed,
            rows=self._layout.rows,
            start_row=rows_before,
        )

    def __next__(self) -> Batch:
        return self._layout.globalise(next(self._iterator))

    def state(self) -> dict:
        return self._iterator.get_state()

    def restore(self, state: dict) -> None:
        self._iterator.set_state(state)

    def describe(self, batch: int) -> str:
        """Say which documents a batch of this phase was made of."""
        return describe_batch(
            self._data,
            split="train",
            batch_size=self._phase.batch_size,
            sequence_length=self._phase.sequence_length,
            seed=self._seed,
            batch=batch,
            start_row=self._rows_before,
        )
