"""The packed rows of one source, by index, for any number of epochs."""

import threading
from collections.abc import Callable, Iterator

import numpy as np

from jaxtrain.data.packing import Packing, Plan
from jaxtrain.data.split import Documents
from jaxtrain.data.store import TokenStore
from jaxtrain.shapes import Batch

_EPOCHS_KEPT = 2  # reading ahead across the end of an epoch needs the plans of both


class SourceRows:
    """Row i is row i % rows_per_epoch of epoch i // rows_per_epoch. Each epoch is packed and shuffled anew.

    An epoch is a function of (seed, epoch) alone. Safe to read from several threads.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: Documents,
        *,
        packing: Packing,
        examples: Callable[..., Batch],
        sequence_length: int,
        seed: tuple[int, ...],
        task: int,
    ):
        self.store = store
        self._documents = documents
        self._packing = packing
        self._examples = examples
        self._sequence_length = sequence_length
        self._seed = seed
        self._task = task
        self._plans: dict[int, Plan] = {}
        self._lock = threading.Lock()
        self.lengths = documents.lengths
        self.tokens_per_epoch = int((documents.lengths - 1).sum())
        self.rows_per_epoch = self._plan(0).rows

    def row(self, index: int) -> Batch:
        """Return a row without a batch axis: its pieces in order, then padding, as an example."""
        document, start, length = self._pieces(index)
        filled, pieces = int(length.sum()), np.arange(len(length))
        position = np.arange(filled) - np.repeat(np.cumsum(length) - length, length)
        at = np.repeat(self._documents.starts[document] + start, length) + position
        row = blank_row(self._sequence_length)
        row.tokens[:filled] = self.store.tokens[at]
        row.targets[:filled] = self.store.tokens[at + 1]
        row.weights[:filled] = 1 if self.store.weights is None else self.store.weights.at(at + 1)
        row.segment_ids[:filled] = np.repeat(pieces + 1, length)
        row.positions[:filled] = position
        epoch, number = divmod(index, self.rows_per_epoch)
        example = self._examples(row, rng=np.random.default_rng((*self._seed, epoch, number)))
        return example._replace(tasks=np.full(self._sequence_length, self._task, np.int32))  # type: ignore[arg-type]

    def describe(self, index: int) -> str:
        """Return a text that names the tokens of a row: 'json/decoder.py[256:512], abc.py[0:90]'."""
        return ", ".join(self.piece_names(index))

    def piece_names(self, index: int) -> list[str]:
        """Return a name of each piece of a row."""
        document, start, length = self._pieces(index)
        number = self._documents.numbers[document]
        begin = self._documents.starts[document] - self.store.starts[number] + start
        return [
            f"{self.store.key(i)}[{first}:{first + count}]"
            for i, first, count in zip(number.tolist(), begin.tolist(), length.tolist(), strict=True)
        ]

    def tokens_in(self, rows: int) -> int:
        """Return how many tokens the first `rows` rows have, whatever the weights of the loss on them."""
        epochs, rest = divmod(rows, self.rows_per_epoch)
        plan = self._plan(epochs)
        return epochs * self.tokens_per_epoch + int(plan.length[: plan.offsets[rest]].sum())

    def document_tokens(self) -> Iterator[np.ndarray]:
        """Yield the tokens of each document of this split, in the order of the store."""
        for start, length in zip(self._documents.starts.tolist(), self._documents.lengths.tolist(), strict=True):
            yield self.store.tokens[start : start + length]

    def document_weights(self) -> Iterator[np.ndarray | None]:
        """Yield the weight of each token of each document, in the order of the store. None: they are all 1."""
        weights = self.store.weights
        for start, length in zip(self._documents.starts.tolist(), self._documents.lengths.tolist(), strict=True):
            yield None if weights is None else weights.at(np.arange(start, start + length))

    def _pieces(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, row = divmod(index, self.rows_per_epoch)
        return self._plan(epoch).row(row)

    def _plan(self, epoch: int) -> Plan:
        with self._lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._packing.plan(
                    self._documents.lengths - 1,
                    row_length=self._sequence_length,
                    rng=np.random.default_rng((*self._seed, epoch)),
                )
                for old in sorted(self._plans)[:-_EPOCHS_KEPT]:
                    if old != epoch:
                        del self._plans[old]
            return self._plans[epoch]


def blank_row(sequence_length: int) -> Batch:
    """Return a row of padding, without a batch axis."""
    ids = np.zeros((5, sequence_length), np.int32)
    weights = np.zeros(sequence_length, np.float32)
    # A Batch is of numpy arrays up to the step, and annotated for the step.
    return Batch(ids[0], ids[1], weights, ids[2], ids[3], ids[4])  # type: ignore[arg-type]
