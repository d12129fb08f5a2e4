"""The interface of sources of text: a finite, ordered stream of named documents."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxtrain.technique import Technique


class Part(NamedTuple):
    """A part of a document's text, and the weight of the loss on each of its tokens. No token lies in two parts."""

    text: str
    weight: float = 1.0


class Document(NamedTuple):
    """A text and its name within the source. The name decides between training and validation, so it must be stable.

    The loss on each token is multiplied by `weight`, and in a text of several parts also by the weight of the part. The
    tokens that begin and end a document belong to its first and its last part.
    """

    key: str
    text: str | tuple[Part, ...]
    weight: float = 1.0

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self.text),) if isinstance(self.text, str) else self.text


class Text(Technique):
    """What `data.source` takes: a source, or a mixture of sources."""

    __slots__ = ()

    @property
    @abstractmethod
    def parts(self) -> tuple["Source", ...]:
        """The sources that it consists of."""

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

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every document once, in an order that depends on the source alone."""

    def expected_documents(self) -> int | None:
        """Return about how many documents there are, for a progress bar. None: only reading them tells."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that determines the documents: digests of their bytes, not sizes and times."""
