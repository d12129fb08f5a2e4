"""What a run reads of each source: documents, tokens, epochs, lengths, padding, and where the tokens come from."""

from typing import NamedTuple

import numpy as np

from jaxtrain.data.config import DataConfig
from jaxtrain.data.rows import Rows
from jaxtrain.data.split import Documents, chosen_of
from jaxtrain.data.store import TokenStore


class Amount(NamedTuple):
    documents: int
    tokens: int


class SourceSummary(NamedTuple):
    """`epochs` and `tokens_read` are those of a run; shares are from 0 to 1, lengths in tokens with the end."""

    label: str
    training: Amount
    validation: Amount
    tokens_read: int
    epochs: float
    with_loss: float  # share of the tokens
    median_length: int
    longest: int
    cut: float  # share of the documents, those longer than a row
    rows_per_epoch: int
    padding: float  # share of the rows
    store: TokenStore


def summaries(config: DataConfig, rows: Rows, *, rows_read: int) -> list[SourceSummary]:
    """Return a summary of each source, for a run that reads the first `rows_read` of its endless training rows."""
    found = []
    for number, (source, count) in enumerate(zip(rows.sources, rows.counts(rows_read), strict=True)):
        store, fraction, divisible = source.store, config.validation_fraction, config.sources[number].divisible
        training = chosen_of(store, split="train", validation_fraction=fraction, divisible=divisible)
        validation = chosen_of(store, split="validation", validation_fraction=fraction, divisible=divisible)
        lengths = training.lengths
        capacity = source.rows_per_epoch * rows.sequence_length
        found.append(
            SourceSummary(
                label=rows.labels[number],
                training=_amount(training),
                validation=_amount(validation),
                tokens_read=source.tokens_in(count),
                epochs=count / source.rows_per_epoch,
                with_loss=_with_loss(training, store),
                median_length=int(np.median(lengths)),
                longest=int(lengths.max()),
                cut=float(np.mean(lengths - 1 > rows.sequence_length)),
                rows_per_epoch=source.rows_per_epoch,
                padding=1 - source.tokens_per_epoch / capacity,
                store=store,
            )
        )
    return found


def _amount(documents: Documents) -> Amount:
    return Amount(len(documents.lengths), int(documents.lengths.sum()))


def _with_loss(documents: Documents, store: TokenStore) -> float:
    """Return the share of the tokens after the first of a document that have loss."""
    if store.weights is None:
        return 1.0
    before = store.weights.with_loss.before
    with_loss = before(documents.starts + documents.lengths) - before(documents.starts + 1)
    return float(with_loss.sum() / (documents.lengths - 1).sum())
