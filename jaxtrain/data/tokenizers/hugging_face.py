"""A `tokenizers` JSON file: the tokenizer.json beside published weights, or made by `jaxtrain tokenizer train`."""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxtrain.data.tokenizers import file
from jaxtrain.data.tokenizers.base import Tokenizer, valid_text
from jaxtrain.paths import FilePath


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer in the file `path`; `end_of_document` is the text of its token that ends a document.

    `begin_of_document` is the text of the token that begins one, False for none, and True for what the file's
    post-processor puts before a text. What that puts after a text is left out: documents have an end of their own, and
    prompts have none.
    """

    path: FilePath
    end_of_document: str = "<|endoftext|>"
    begin_of_document: bool | str = True

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
        """Return the text of a token; None where no token has the id."""
        return self._file.model.id_to_token(id) if 0 <= id < self.vocab_size else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        model = self._file.model
        with file.naming(self.path, "cannot encode a text", remedy="Name a whole one with a token for unknown words."):
            encodings = model.encode_batch_fast([valid_text(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        model, size = self._file.model, self.vocab_size
        with file.naming(self.path, "cannot decode its ids", remedy="It is damaged: name a whole one."):
            return model.decode([int(i) for i in ids if 0 <= i < size], skip_special_tokens=True)

    def identity(self) -> str:
        digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        beginning = f" {list(self.beginning)}" if self.beginning else ""
        return f"hugging_face {digest} {self.end_of_document}{beginning}"

    def _id(self, key: str, token: str) -> int:
        model = self._file.model
        found = model.token_to_id(token)
        if found is None:
            special = [token.content for token in model.get_added_tokens_decoder().values() if token.special]
            raise ValueError(
                f"{key}={token!r} is not a token of {self.path}. Name one of its special tokens: {special[:20]}."
            )
        return found

    @property
    def _file(self) -> "_File":
        return _load(self.path, file.version(self.path, kind="tokenizer JSON file"))


class _File(NamedTuple):
    model: tokenizers.Tokenizer
    vocab_size: int
    beginning: tuple[int, ...]


@functools.lru_cache(maxsize=4)
def _load(path: str, version: tuple[int, ...]) -> _File:
    """Load once a version of the file."""
    with file.naming(path, "is not a `tokenizers` JSON file", remedy="`jaxtrain tokenizer train` makes one."):
        content = Path(path).read_bytes()
        with file.quiet():
            model = tokenizers.Tokenizer.from_buffer(content)
        model.encode_special_tokens = True  # a document that spells '<|endoftext|>' must not end there
        model.no_truncation()  # published files carry the settings of whoever saved them
        model.no_padding()
        vocab_size = _vocab_size(model.get_vocab(with_added_tokens=True))
        beginning = _beginning(json.loads(model.post_processor.__getstate__())) if model.post_processor else ()
        if beginning and not 0 <= min(beginning) <= max(beginning) < vocab_size:
            raise ValueError(f"its post-processor begins texts with {list(beginning)}, and it has {vocab_size} ids")
    return _File(model, vocab_size, beginning)


def _vocab_size(vocab: dict[str, int]) -> int:
    """Return the number of ids. Raises ValueError where there is none, or one stands for two tokens."""
    if not vocab:
        raise ValueError("it has no tokens")
    [(id, tokens)] = collections.Counter(vocab.values()).most_common(1)
    if tokens > 1:
        raise ValueError(f"the id {id} stands for {tokens} tokens, {[t for t, i in vocab.items() if i == id][:5]}")
    return max(vocab.values()) + 1


def _beginning(processor: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that a post-processor, as its JSON has it, puts before a single text."""
    match processor["type"]:
        case "Sequence":
            parts = [part for part in processor["processors"] if part["type"] != "ByteLevel"]
            if len(parts) > 1:  # on most of which the library panics
                raise ValueError(f"its post-processor is {' and '.join(part['type'] for part in parts)} in a row")
            return _beginning(parts[0]) if parts else ()
        case "BertProcessing" | "RobertaProcessing":
            return (processor["cls"][1],)
        case "ByteLevel":
            return ()
        case "TemplateProcessing":
            return tuple(_template_beginning(processor))
    raise ValueError(f"its post-processor {processor['type']!r} is not known")


def _template_beginning(processor: dict[str, Any]) -> Iterator[int]:
    for piece in processor["single"]:
        if "Sequence" in piece:
            return
        token = piece["SpecialToken"]["id"]
        if token not in processor["special_tokens"]:
            raise ValueError(f"its post-processor puts {token!r} before texts and does not say what ids that has")
        yield from processor["special_tokens"][token]["ids"]
