"""The interface of sources of text: a finite, ordered stream of named documents."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxtrain.technique import Technique


class Document(NamedTuple):
    """A text and its name within the source. The name decides between training and validation, so it must be stable."""

    key: str
    text: str


class Text(Technique):
    """What `data.source` takes: a source, or a mixture of sources."""

    __slots__ = ()

    @property
    @abstractmethod
    def parts(self) -> tuple["Source", ...]:
        """The sources that it consists of."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the sources are called in metrics."""
        return tuple(f"source{number}" for number in range(len(self.parts)))

    @abstractmethod
    def token_shares(self, token_counts: Sequence[int]) -> np.ndarray:
        """Return each source's share of the tokens trained on, from the number of tokens in each. The sum is 1."""

    @abstractmethod
    def describe_shares(self) -> str:
        """Return a text that determines the shares, together with the sources."""


class Source(Text):
    """A finite, ordered stream of named documents. Subclasses are frozen dataclasses of plain fields, one file each."""

    __slots__ = ()

    @property
    def parts(self) -> tuple["Source", ...]:
        return (self,)

    def token_shares(self, token_counts: Sequence[int]) -> np.ndarray:
        return np.ones(1)

    def describe_shares(self) -> str:
        return "one source"

    def check(self) -> None:
        """Raise ValueError or OSError where the source is not there. Nothing of it is read yet."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every document once, in an order that depends on the source alone."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that determines the documents: digests of their bytes, not sizes and times."""
