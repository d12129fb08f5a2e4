"""The interface of sources of text: a finite, ordered stream of named documents."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.technique import Technique

_BATCH_CHARACTERS = 2**22
_BATCH_DOCUMENTS = 1024


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


class Tokenised(NamedTuple):
    """A document, and the ids of each of its parts."""

    document: Document
    ids: Sequence[np.ndarray]


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

    @property
    def tasks(self) -> tuple[int | None, ...]:
        """The numbers of the tasks of the sources, for models that tell tasks apart; None where none is given."""
        return (None,) * len(self.parts)

    @abstractmethod
    def token_shares(self, token_counts: Sequence[int]) -> np.ndarray:
        """Return each source's share of the tokens trained on, from the number of tokens in each. The sum is 1."""

    @abstractmethod
    def describe_shares(self) -> str:
        """Return a text that determines the shares, together with the sources."""


class Source(Text):
    """A finite, ordered stream of named documents. Subclasses are frozen dataclasses of plain fields, one file each."""

    __slots__ = ()
    divisible: ClassVar[bool] = True  # a document may be cut between training and validation

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

    def expected_documents(self) -> int | None:
        """Return about how many documents there are, for a progress bar. None: only reading them tells."""
        return None

    def tokenised(self, tokenizer: Tokenizer) -> Iterator[Tokenised]:
        """Yield the documents that are not empty, with their tokens."""
        for batch in _batches(self.documents()):
            encoded = tokenizer.encode_documents([tuple(part.text for part in document.parts) for document in batch])
            yield from map(Tokenised, batch, encoded)

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that determines the documents: digests of their bytes, not sizes and times."""


class Record(NamedTuple):
    """A row of a table, or an object of a file, and its name within the source. `place` says where it is, in errors."""

    key: str
    place: str
    fields: Mapping[str, Any]


class Records(Source):
    """A source whose documents are fields of records, which other sources may read whole."""

    __slots__ = ()

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """Yield every record once, in an order that depends on the source alone, with all its fields."""


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield groups of non-empty documents, which a tokenizer encodes in parallel, in bounded memory."""
    batch, characters = [], 0
    for document in documents:
        if length := sum(len(part.text) for part in document.parts):
            batch.append(document)
            characters += length
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
