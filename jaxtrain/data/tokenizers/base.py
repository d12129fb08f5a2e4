"""The interface of tokenizers: text to ids and back, and the ids that begin and end a document."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtrain.technique import Technique


class Placed(NamedTuple):
    """The ids of a text, and the characters of it that each stands for: from `starts` up to `ends`."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


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

    @property
    def special_tokens(self) -> dict[str, int]:
        """The texts of the special tokens, and their ids: those that `encode_template` reads. None by default."""
        return {}

    def encode_template(self, texts: Sequence[str]) -> list[Placed]:
        """Return the ids of each text, in which the text of a special token is that token. No id is added.

        A tokenizer with `special_tokens` has this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no special tokens in a text")

    def encode_documents(self, documents: Sequence[tuple[str, ...]]) -> list[list[np.ndarray]]:
        """Return the int32 ids of the parts of each document. The first has its beginning, the last its end."""
        ids = iter(self.encode_batch([part for document in documents for part in document]))
        beginning, end = np.array(self.beginning, np.int32), np.array([self.end_of_document_id], np.int32)
        encoded = []
        for document in documents:
            parts = [next(ids) for _ in document]
            parts[0] = np.concatenate([beginning, parts[0]])
            parts[-1] = np.concatenate([parts[-1], end])
            encoded.append(parts)
        return encoded

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of the first words of a document: with its beginning and without an end."""
        return [*self.beginning, *self.encode(text).tolist()]


def valid_text(text: str) -> str:
    """Return the text with question marks for halves of surrogate pairs, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()
