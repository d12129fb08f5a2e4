"""The file of the domains of a text: how contexts are embedded, the centres, and the domain of each document."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtrain.data.domains.clusters import k_means
from jaxtrain.data.domains.tf_idf import counted, embedded, inverse_frequencies
from jaxtrain.data.store import TokenStore
from jaxtrain.data.tokenizers.base import Tokenizer


class DomainsFile(NamedTuple):
    """The domains of the documents of a source, in the order in which it is read.

    `frequencies` [W] are the inverse document frequencies of tokens; those that begin and end documents have 0.
    `centres` are [K, W], `labels` and `keys` have a number for each document: its domain, and a hash of its key.
    """

    frequencies: np.ndarray
    centres: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    tokenizer: str  # its identity

    @property
    def number(self) -> int:
        return len(self.centres)

    @classmethod
    def of(cls, store: TokenStore, tokenizer: Tokenizer, *, number: int, seed: int = 0) -> "DomainsFile":
        """Find the domains of a tokenised source. Raises ValueError where it has fewer documents than domains."""
        ends = (*tokenizer.beginning, tokenizer.end_of_document_id)
        pieces = zip(store.starts.tolist(), store.lengths.tolist(), strict=True)
        counts = counted((store.tokens[start : start + length] for start, length in pieces), without=ends)
        frequencies = inverse_frequencies(counts, tokenizer.vocab_size)
        frequencies[list(ends)] = 0
        found = k_means(embedded(counts, frequencies), number, tokenizer.vocab_size, seed=seed)
        return cls(frequencies, found.centres, found.labels, store.key_hashes, tokenizer.identity())

    def write(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, **self._asdict())

    @classmethod
    def read(cls, path: Path) -> "DomainsFile":
        """Read a file that `jaxtrain domains` wrote. Raises ValueError where it is no such file."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in cls._fields}
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is no file of domains, or is damaged ({error}); write it with jaxtrain domains"
            ) from error
        return cls(**found | {"tokenizer": str(found["tokenizer"])})
