"""A `tokenizers` JSON file: the tokenizer.json beside published weights, or made by `jaxtrain tokenizer train`."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tokenizers

from jaxtrain.data.tokenizers import file
from jaxtrain.data.tokenizers.base import Placed, Tokenizer, valid_text
from jaxtrain.data.tokenizers.hugging_face_file import HuggingFaceFile, byte_counts, load, load_for_templates
from jaxtrain.paths import FilePath


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer in the file `path`; `end_of_document` is the text of its token that ends a document.

    `begin_of_document` is the text of the token that begins a document, False for no token, or True for the ids that
    the file's post-processor puts before a text. The ids that it puts after a text are left out: documents end with
    `end_of_document`, and prompts have no end.
    """

    path: FilePath
    end_of_document: str = "<|endoftext|>"
    begin_of_document: bool | str = True
    paper: ClassVar[str] = "github.com/huggingface/tokenizers"

    @property
    def vocab_size(self) -> int:
        return self._file.vocab_size

    @property
    def beginning(self) -> tuple[int, ...]:
        if isinstance(self.begin_of_document, str):
            return (self._id("begin_of_document", self.begin_of_document),)
        return self._file.beginning if self.begin_of_document else ()

    @property
    def end_of_document_id(self) -> int:
        return self._id("end_of_document", self.end_of_document)

    def token(self, id: int) -> str | None:
        """Return the text of a token, or None where no token has the id."""
        return self._file.model.id_to_token(id) if 0 <= id < self.vocab_size else None

    def id(self, token: str) -> int | None:
        """Return the id of a token, or None where there is no such token."""
        return self._file.model.token_to_id(token)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        model = self._file.model
        with file.naming(self.path, "cannot encode a text", remedy="Name a whole one with a token for unknown words."):
            encodings = model.encode_batch_fast([valid_text(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    @property
    def special_tokens(self) -> dict[str, int]:
        added = self._file.model.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special}

    def encode_template(self, texts: Sequence[str]) -> list[Placed]:
        model = load_for_templates(self.path, self._version)
        with file.naming(self.path, "cannot encode a text", remedy="Name a whole one with a token for unknown words."):
            encodings = model.encode_batch([valid_text(text) for text in texts], add_special_tokens=False)
        return [_placed(encoding) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        model, size = self._file.model, self.vocab_size
        with file.naming(self.path, "cannot decode its ids", remedy="It is damaged: name a whole one."):
            return model.decode([int(i) for i in ids if 0 <= i < size], skip_special_tokens=True)

    def byte_counts(self) -> np.ndarray | None:
        """Return the bytes of each id, for byte-level files and those made from SentencePiece."""
        return byte_counts(self._file)

    def identity(self) -> str:
        digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        beginning = f" {list(self.beginning)}" if self.beginning else ""
        return f"hugging_face {digest} {self.end_of_document}{beginning}"

    def _id(self, key: str, token: str) -> int:
        found = self.id(token)
        if found is None:
            special = [token.content for token in self._file.model.get_added_tokens_decoder().values() if token.special]
            raise ValueError(
                f"{key}={token!r} is not a token of {self.path}. Name one of its special tokens: {special[:20]}."
            )
        return found

    @property
    def _file(self) -> HuggingFaceFile:
        return load(self.path, self._version)

    @property
    def _version(self) -> tuple[int, ...]:
        return file.version(self.path, kind="tokenizer JSON file")


def _placed(encoding: tokenizers.Encoding) -> Placed:
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    return Placed(np.array(encoding.ids, np.int32), starts, ends)
