"""The interface of tokenizers: text to ids and back, and the ids that begin and end a document."""

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
        """The id appended to every document. Generation stops at it."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the int32 ids of each text. No id is added, and a special token's text is encoded like other text."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text. Special and unknown ids are dropped; invalid UTF-8 becomes U+FFFD."""

    @abstractmethod
    def identity(self) -> str:
        """Return a text that differs between tokenizers that may encode any text or document differently."""

    def byte_counts(self) -> np.ndarray | None:
        """Return how many bytes of UTF-8 each id stands for, 0 for special ones; None where that is not known.

        The counts of the ids of a text add up to its bytes, as far as the tokenizer does not change the text. By them
        losses are told in bits a byte, which can be compared over tokenizers.
        """
        return None

    def encode(self, text: str) -> np.ndarray:
        """Return the int32 ids of one text."""
        return self.encode_batch([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the int32 ids of each text as a document: with its beginning and its end."""
        beginning, end = np.array(self.beginning, np.int32), np.array([self.end_of_document_id], np.int32)
        return [np.concatenate([beginning, ids, end]) for ids in self.encode_batch(texts)]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of the first words of a document: with its beginning and without an end."""
        return [*self.beginning, *self.encode(text).tolist()]


def valid_text(text: str) -> str:
    """Return the text with question marks for halves of surrogate pairs, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()
