"""The training and the validation split of a store.

A document is for validation if the hash of its key, as a number from 0 to 1, is below `validation_fraction`. So its
split does not depend on other documents or their order. With few documents (one novel, one log) the share of tokens
for validation can be far from `validation_fraction`. Then every document is cut instead, and its last
`validation_fraction` of tokens is for validation. A chat is not cut, or training would not see how it ends: then those
of the smallest hashes are for validation, as many as make `validation_fraction` of all.
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxtrain.data.store import TokenStore
from jaxtrain.data.weights import Weights

Split = Literal["train", "validation"]
_TOLERATED_FACTOR = 4  # largest ratio of the configured share of tokens and the share that splitting by document gives


class Documents(NamedTuple):
    """The documents of one split, or parts of them: part i is tokens[starts[i] : starts[i] + lengths[i]].

    It belongs to document numbers[i] of the store.
    """

    numbers: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def documents_of(store: TokenStore, *, split: Split, validation_fraction: float, divisible: bool = True) -> Documents:
    """Return the documents of one split that hold at least one (token, next token) pair.

    Raises:
      ValueError: there is no such document.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"{split=} must be 'train' or 'validation'.")
    chosen = chosen_of(store, split=split, validation_fraction=validation_fraction, divisible=divisible)
    if not len(chosen.numbers):
        raise ValueError(
            f"{validation_fraction=} leaves no text in {split=} of {int(store.lengths.sum())} tokens in "
            f"{len(store.lengths)} documents. Give more text or another validation_fraction."
        )
    if store.weights is not None and not _weight(chosen, store.weights):
        raise ValueError(
            f"{validation_fraction=} leaves no token with loss in {split=}: the source gives all of them the weight 0. "
            "Give more text or another validation_fraction."
        )
    return chosen


def chosen_of(store: TokenStore, *, split: Split, validation_fraction: float, divisible: bool) -> Documents:
    """Return the documents of one split, which may be none."""
    everything = Documents(np.arange(len(store.starts)), store.starts, store.lengths)
    if validation_fraction == 0:
        chosen = everything if split == "train" else _where(everything, np.zeros(len(store.starts), bool))
    else:
        for_validation = store.key_hashes / 2.0**64 < validation_fraction
        is_near = _is_near(for_validation, store.lengths, validation_fraction)
        if not is_near and not divisible:
            for_validation = _smallest(store.key_hashes, validation_fraction)
        if is_near or not divisible:
            chosen = _where(everything, for_validation if split == "validation" else ~for_validation)
        else:
            chosen = _cut(everything, split, validation_fraction)
    return _where(chosen, chosen.lengths >= 2)


def _weight(documents: Documents, weights: Weights) -> float:
    """Return the sum of the weights of all tokens that another one of their document comes before."""
    sums = weights.before(documents.starts + documents.lengths) - weights.before(documents.starts + 1)
    return float(sums.sum())


def _is_near(for_validation: np.ndarray, lengths: np.ndarray, fraction: float) -> bool:
    share = lengths[for_validation].sum() / lengths.sum()
    enough_validation = fraction / _TOLERATED_FACTOR <= share <= fraction * _TOLERATED_FACTOR
    return bool(enough_validation and 1 - share >= (1 - fraction) / _TOLERATED_FACTOR)


def _smallest(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Return which documents have the smallest hashes: at least one, and not all of several."""
    count = min(max(1, round(fraction * len(hashes))), len(hashes) - 1)
    chosen = np.zeros(len(hashes), bool)
    chosen[np.argsort(hashes, kind="stable")[:count]] = True
    return chosen


def _cut(everything: Documents, split: Split, fraction: float) -> Documents:
    tail = (everything.lengths * fraction).astype(np.int64)
    tail[tail < 2] = 0  # a single token has no next token to predict
    head = everything.lengths - tail
    if split == "train":
        return everything._replace(lengths=head)
    return everything._replace(starts=everything.starts + head, lengths=tail)


def _where(documents: Documents, chosen: np.ndarray) -> Documents:
    return Documents(*(column[chosen] for column in documents))
