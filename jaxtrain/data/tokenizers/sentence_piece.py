"""A SentencePiece model file. Note that most are trained to normalise: runs of spaces and newlines do not come back."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from jaxtrain.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SentencePiece(Tokenizer):
    """The model in the file `path`; its end-of-sentence piece ends a document."""

    path: str

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def end_of_document_id(self) -> int:
        found = self._model.eos_id()
        if found < 0:
            raise ValueError(f"path={self.path!r} has no end-of-sentence piece. Train it with eos_id set.")
        return found

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._model.encode(list(texts), num_threads=os.cpu_count() or 1)
        return [np.array(ids, np.int32) for ids in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        model = self._model
        known = (int(i) for i in ids if 0 <= i < model.get_piece_size())
        return model.decode([i for i in known if not model.is_control(i)])

    def identity(self) -> str:
        return f"sentence_piece {hashlib.sha256(Path(self.path).read_bytes()).hexdigest()}"

    @property
    def _model(self) -> sentencepiece.SentencePieceProcessor:
        try:
            status = os.stat(self.path)
        except OSError as e:
            raise ValueError(f"path={self.path!r} cannot be read ({e.strerror}). Name a SentencePiece model.") from e
        return _load(self.path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _load(path: str, mtime_ns: int, size_bytes: int) -> sentencepiece.SentencePieceProcessor:
    """Load once a version of the file."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=Path(path).read_bytes())
    except Exception as e:  # the library raises nothing narrower
        raise ValueError(f"{path=} is not a SentencePiece model ({e}). Name a .model file.") from e
