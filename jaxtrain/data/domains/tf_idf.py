"""Embeddings of documents: how often each term occurs, times the logarithm of how rare it is, as unit vectors.

The inverse document frequency is log((1 + N) / (1 + df)) + 1 for a term in df of N documents: that of Sparck Jones
(1972), smoothed as if one more document had every term, so that no term of all documents is lost.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Embeddings(NamedTuple):
    """Sparse rows, one a document: terms[starts[i] : starts[i + 1]] are the terms of document i; `values` alike."""

    terms: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    def products(self, vectors: np.ndarray) -> np.ndarray:
        """Return the inner products of all rows with dense vectors [K, W], as [N, K]."""
        found = np.zeros((self.documents, len(vectors)))
        has_terms = np.diff(self.starts) > 0
        for column, vector in zip(found.T, vectors, strict=True):
            column[has_terms] = np.add.reduceat(self.values * vector[self.terms], self.starts[:-1][has_terms])
        return found

    def means(self, labels: np.ndarray, groups: int, width: int) -> np.ndarray:
        """Return the mean row of each group, [groups, width]."""
        of_term = np.repeat(labels, np.diff(self.starts))
        sums = np.bincount(of_term * width + self.terms, weights=self.values, minlength=groups * width)
        return sums.reshape(groups, width) / np.maximum(np.bincount(labels, minlength=groups), 1)[:, None]


def counted(documents: Iterable[np.ndarray], *, without: tuple[int, ...] = ()) -> Embeddings:
    """Return how often each term occurs in each document. Terms `without` are not counted."""
    terms, counts, starts = [np.zeros(0, np.int64)], [np.zeros(0)], [0]
    for document in documents:
        found, times = np.unique(document, return_counts=True)
        kept = ~np.isin(found, without)
        terms.append(found[kept].astype(np.int64))
        counts.append(times[kept].astype(np.float64))
        starts.append(starts[-1] + int(kept.sum()))
    return Embeddings(np.concatenate(terms), np.concatenate(counts), np.array(starts))


def inverse_frequencies(counts: Embeddings, width: int) -> np.ndarray:
    """Return the inverse document frequency of every term, [width]."""
    with_term = np.bincount(counts.terms, minlength=width)
    return np.log((1 + counts.documents) / (1 + with_term)) + 1


def embedded(counts: Embeddings, frequencies: np.ndarray) -> Embeddings:
    """Return the rows as unit vectors; a document without terms stays 0."""
    values = counts.values * frequencies[counts.terms]
    of_document = np.repeat(np.arange(counts.documents), np.diff(counts.starts))
    length = np.sqrt(np.bincount(of_document, weights=values**2, minlength=counts.documents))
    return counts._replace(values=values / length[of_document])
