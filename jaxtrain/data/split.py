"""Training and validation: which tokens of a store belong to which.

By document, where that comes out near what was asked: a document whose key hashes below `validation_fraction` is for
validation, whatever else the source holds and in whatever order. With few documents (one novel, one log) the share
that falls to validation can be nothing or nearly everything; then every document is cut instead, and its last
`validation_fraction` of tokens is for validation.
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxtrain.data.store import TokenStore

Split = Literal["train", "validation"]
_TOLERATED_FACTOR = 4  # between the share of tokens asked for and the share that splitting by document gives


class Documents(NamedTuple):
    """The documents of one split, or parts of them: part i is tokens[starts[i] : starts[i] + lengths[i]]."""

    index: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


def documents_of(store: TokenStore, *, split: Split, validation_fraction: float) -> Documents:
    """Return the documents of one split that hold at least one (token, next token) pair.

    Raises:
      ValueError: there is none.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"{split=} must be 'train' or 'validation'.")
    everything = Documents(np.arange(len(store.starts)), store.starts, store.lengths)
    if validation_fraction == 0:
        chosen = everything if split == "train" else _where(everything, np.zeros(len(store.starts), bool))
    else:
        for_validation = store.key_hashes / 2.0**64 < validation_fraction
        if _is_near(for_validation, store.lengths, validation_fraction):
            chosen = _where(everything, for_validation if split == "validation" else ~for_validation)
        else:
            chosen = _cut(everything, split, validation_fraction)
    chosen = _where(chosen, chosen.lengths >= 2)
    if not len(chosen.index):
        raise ValueError(
            f"{validation_fraction=} leaves no text in {split=} of {int(store.lengths.sum())} tokens in "
            f"{len(store.lengths)} documents. Give more text or another validation_fraction."
        )
    return chosen


def _is_near(for_validation: np.ndarray, lengths: np.ndarray, fraction: float) -> bool:
    share = lengths[for_validation].sum() / lengths.sum()
    enough_validation = fraction / _TOLERATED_FACTOR <= share <= fraction * _TOLERATED_FACTOR
    return bool(enough_validation and 1 - share >= (1 - fraction) / _TOLERATED_FACTOR)


def _cut(everything: Documents, split: Split, fraction: float) -> Documents:
    tail = (everything.lengths * fraction).astype(np.int64)
    tail[tail < 2] = 0  # a lone token has no next one to predict
    head = everything.lengths - tail
    if split == "train":
        return everything._replace(lengths=head)
    return everything._replace(starts=everything.starts + head, lengths=tail)


def _where(documents: Documents, chosen: np.ndarray) -> Documents:
    return Documents(*(column[chosen] for column in documents))
