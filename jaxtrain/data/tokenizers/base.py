"""What a tokenizer is: text to ids and back, and the ids that begin and end a document."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from jaxtrain.technique import Technique


class Tokenizer(Technique):
    """Text to ids and back. Subclasses are frozen dataclasses of plain fields, one file each."""

    __slots__ = ()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ones included: every id is below it."""

    @property
    def beginning(self) -> tuple[int, ...]:
        """The ids put before every document and every prompt, such as a begin-of-sequence token; none by default."""
        return ()

    @property
    @abstractmethod
    def end_of_document_id(self) -> int:
        """The id appended to every document; a generated one ends the text."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the int32 ids of each text. Nothing is added, and text that spells a special token stays text."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text. Special ids and ids the tokenizer lacks are dropped; broken UTF-8 becomes U+FFFD."""

    @abstractmethod
    def identity(self) -> str:
        """Return a text that changes whenever any encoding could, of texts and of documents."""

    def encode(self, text: str) -> np.ndarray:
        """Return the int32 ids of one text."""
        return self.encode_batch([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the int32 ids of each text as a whole document, its beginning and its end added."""
        beginning, end = np.array(self.beginning, np.int32), np.array([self.end_of_document_id], np.int32)
        return [np.concatenate([beginning, ids, end]) for ids in self.encode_batch(texts)]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a document's first words, its beginning added."""
        return [*self.beginning, *self.encode(text).tolist()]


def valid_text(text: str) -> str:
    """Return the text with halves of surrogate pairs, which no encoding has, replaced by question marks."""
    return text.encode(errors="replace").decode()
