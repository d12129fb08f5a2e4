"""A `tokenizers` JSON file: the tokenizer.json beside published weights, or made by `jaxtrain tokenizer train`."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from jaxtrain.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer in the file `path`; `end_of_document` is the text of its token that ends a document."""

    path: str
    end_of_document: str = "<|endoftext|>"

    @property
    def vocab_size(self) -> int:
        return max(self._model.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_of_document_id(self) -> int:
        found = self._model.token_to_id(self.end_of_document)
        if found is None:
            special = [token.content for token in self._model.get_added_tokens_decoder().values() if token.special]
            raise ValueError(
                f"end_of_document={self.end_of_document!r} is not a token of {self.path}. "
                f"Name one of its special tokens: {special[:20]}."
            )
        return found

    def token(self, id: int) -> str | None:
        """Return the text of a token; None where no token has the id."""
        return self._model.id_to_token(id) if id >= 0 else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._model.decode([int(i) for i in ids if i >= 0], skip_special_tokens=True)  # drops unknown ids too

    def identity(self) -> str:
        digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        return f"hugging_face {digest} {self.end_of_document}"

    @property
    def _model(self) -> tokenizers.Tokenizer:
        try:
            status = os.stat(self.path)
        except OSError as e:
            raise ValueError(f"path={self.path!r} cannot be read ({e.strerror}). Name a tokenizer JSON file.") from e
        return _load(self.path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _load(path: str, mtime_ns: int, size_bytes: int) -> tokenizers.Tokenizer:
    """Load once a version of the file: a tokenizer trained anew under the same name is another one."""
    try:
        model = tokenizers.Tokenizer.from_file(path)
    except Exception as e:  # the library raises nothing narrower
        raise ValueError(f"{path=} is not a `tokenizers` JSON file ({e}). `jaxtrain tokenizer train` makes one.") from e
    model.encode_special_tokens = True  # a document that spells '<|endoftext|>' must not end there
    model.no_truncation()  # published files carry the settings of whoever saved them
    model.no_padding()
    return model
