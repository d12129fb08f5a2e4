"""A SentencePiece model file. Most are trained to normalise text, and do not preserve runs of spaces and newlines."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import sentencepiece

from jaxtrain.data.tokenizers import file
from jaxtrain.data.tokenizers.base import Tokenizer, valid_text
from jaxtrain.paths import FilePath

SPACE = "\u2581"  # in place of a space in pieces


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SentencePiece(Tokenizer):
    """The model in the file `path`; its end-of-sentence piece ends a document.

    With `begin_of_document` its begin-of-sequence piece begins a document. A file may have such a piece, but does not
    say whether texts begin with it.
    """

    path: FilePath
    begin_of_document: bool = False
    paper: ClassVar[str] = "arXiv:1808.06226"

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def beginning(self) -> tuple[int, ...]:
        return (self._piece("begin-of-sequence", self._model.bos_id(), "bos_id"),) if self.begin_of_document else ()

    @property
    def end_of_document_id(self) -> int:
        return self._piece("end-of-sentence", self._model.eos_id(), "eos_id")

    @property
    def has_begin_of_sequence(self) -> bool:
        return self._model.bos_id() >= 0

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        model = self._model
        with file.naming(self.path, "cannot encode a text", remedy="It is damaged: name a whole one."):
            encoded = model.encode([valid_text(text) for text in texts], num_threads=os.cpu_count() or 1)
        return [np.array(ids, np.int32) for ids in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        model = self._model
        known = (int(i) for i in ids if 0 <= i < model.get_piece_size())
        with file.naming(self.path, "cannot decode its ids", remedy="It is damaged: name a whole one."):
            return model.decode([i for i in known if not model.is_control(i)])

    def byte_counts(self) -> np.ndarray:
        model = self._model

        def count(id: int) -> int:
            if model.is_control(id) or model.is_unknown(id):
                return 0
            return 1 if model.is_byte(id) else len(model.id_to_piece(id).replace(SPACE, " ").encode())

        return np.array([count(id) for id in range(self.vocab_size)], np.float32)

    def identity(self) -> str:
        beginning = f" {list(self.beginning)}" if self.beginning else ""
        return f"sentence_piece {hashlib.sha256(Path(self.path).read_bytes()).hexdigest()}{beginning}"

    def _piece(self, name: str, found: int, setting: str) -> int:
        if found < 0:
            raise ValueError(f"path={self.path!r} has no {name} piece. Train it with {setting} set.")
        return found

    @property
    def _model(self) -> sentencepiece.SentencePieceProcessor:
        return _load(self.path, file.version(self.path, kind="SentencePiece model"))


@functools.lru_cache(maxsize=4)
def _load(path: str, version: tuple[int, ...]) -> sentencepiece.SentencePieceProcessor:
    """Load a file, once for each version of it."""
    with file.naming(path, "is not a SentencePiece model", remedy="Name a .model file."):
        content = Path(path).read_bytes()
        if not content:  # the library accepts it, as a model without pieces
            raise ValueError("it is empty")
        return sentencepiece.SentencePieceProcessor(model_proto=content)
