"""What a source of text is: a finite, ordered stream of named documents."""

import abc
from collections.abc import Iterator
from typing import NamedTuple


class Document(NamedTuple):
    """A text and its name within the source. The name decides between training and validation, so it must be stable."""

    key: str
    text: str


class Source(abc.ABC):
    """Text to train on. Subclasses are frozen dataclasses of plain fields, one file each."""

    __slots__ = ()

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield every document once, in an order that depends on nothing but the source."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Return a text that determines the documents: digests of what they are made of, not sizes and times."""
