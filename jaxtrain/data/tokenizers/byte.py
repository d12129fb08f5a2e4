"""UTF-8 bytes as ids: no training, no file, any text in any language."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxtrain.data.tokenizers.base import Tokenizer

_END_OF_DOCUMENT = 256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ByteTokenizer(Tokenizer):
    """Ids 0..255 are bytes, 256 ends a document.

    >>> ByteTokenizer().encode("né").tolist()
    [110, 195, 169]
    """

    paper: ClassVar[str] = "common practice"

    @property
    def vocab_size(self) -> int:
        return _END_OF_DOCUMENT + 1

    @property
    def end_of_document_id(self) -> int:
        return _END_OF_DOCUMENT

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, np.int64)
        return ids[(ids >= 0) & (ids < _END_OF_DOCUMENT)].astype(np.uint8).tobytes().decode(errors="replace")

    def byte_counts(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < _END_OF_DOCUMENT).astype(np.float32)

    def identity(self) -> str:
        return "bytes"
