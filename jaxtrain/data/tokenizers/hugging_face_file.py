"""Reading a `tokenizers` JSON file, with checks that the library omits: duplicate ids, and keys that it ignores."""

import collections
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxtrain.data.tokenizers import file

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_SETTINGS = ("version", "truncation", "padding")
_TOKEN_KEYS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
_MODEL_KEYS: dict[str, tuple[str, ...]] = {  # without the type and the vocabulary
    "BPE": (
        *("merges", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
        *("fuse_unk", "byte_fallback", "ignore_merges"),
    ),
    "Unigram": ("unk_id", "byte_fallback"),
    "WordLevel": ("unk_token",),
    "WordPiece": ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word"),
}
SPACE = "\u2581"  # in place of a space in tokens
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token of one byte
_OLD_KEYS = {"add_prefix_space", "str_rep"}  # keys of older files that the library reads and writes under new names


class HuggingFaceFile(NamedTuple):
    model: tokenizers.Tokenizer
    vocab_size: int
    beginning: tuple[int, ...]  # the ids that its post-processor puts before a text


@functools.lru_cache(maxsize=4)
def load(path: str, version: tuple[int, ...]) -> HuggingFaceFile:
    """Load a file, once for each version of it.

    Raises:
      ValueError: the file cannot be read, or the library ignores a part of it.
    """
    with file.naming(path, "is not a `tokenizers` JSON file", remedy="`jaxtrain tokenizer train` makes one."):
        content = Path(path).read_bytes()
        with file.quiet():
            model = tokenizers.Tokenizer.from_buffer(content)
        vocab = model.get_vocab(with_added_tokens=True)
        _check_ids(vocab)
        _check_read(json.loads(content), model)
        model.encode_special_tokens = True  # a document that spells '<|endoftext|>' must not end there
        model.no_truncation()  # published files have the truncation and padding of whoever saved them
        model.no_padding()
        beginning = _beginning(json.loads(model.post_processor.__getstate__())) if model.post_processor else ()
        size = max(vocab.values()) + 1
        if beginning and not 0 <= min(beginning) <= max(beginning) < size:
            raise ValueError(f"its post-processor begins texts with {list(beginning)}, and it has {size} ids")
    return HuggingFaceFile(model, size, beginning)


@functools.lru_cache(maxsize=2)
def load_for_templates(path: str, version: tuple[int, ...]) -> tokenizers.Tokenizer:
    """Load a file a second time: here the text of a special token is that token, and offsets are where tokens begin.

    A post-processor with `trim_offsets`, the library's default, moves them behind the spaces that tokens begin with.
    """
    model = tokenizers.Tokenizer.from_str(load(path, version).model.to_str())
    model.encode_special_tokens = False
    model.post_processor = None  # templates write all special tokens themselves
    return model


def _check_ids(vocab: dict[str, int]) -> None:
    if not vocab:
        raise ValueError("it has no tokens")
    [(id, count)] = collections.Counter(vocab.values()).most_common(1)
    if count > 1:
        raise ValueError(f"the id {id} stands for {count} tokens, {[t for t, i in vocab.items() if i == id][:5]}")


def _check_read(written: dict[str, Any], model: tokenizers.Tokenizer) -> None:
    """Raise ValueError where the library has ignored a part of the file."""
    for token in written.get("added_tokens") or []:
        if model.token_to_id(token["content"]) != token["id"]:
            raise ValueError(f"its added token {token['content']!r} cannot have the id {token['id']}")
    parts = ((name, getattr(model, name)) for name in _PARTS)
    read = {name: json.loads(part.__getstate__()) if part else None for name, part in parts}
    kind = type(model.model).__name__
    read["model"] = dict.fromkeys({"type", "vocab", *_MODEL_KEYS[kind]})
    read["added_tokens"] = [dict.fromkeys(_TOKEN_KEYS) for _ in written.get("added_tokens") or []]
    for key in _unread(written, read | dict.fromkeys(_SETTINGS), ""):
        raise ValueError(f"its key {key} is not understood")
    if len(written["model"]["vocab"]) != model.get_vocab_size(with_added_tokens=False):
        raise ValueError("its vocabulary has a token twice")


def _unread(written: Any, read: Any, at: str) -> Iterator[str]:
    """Yield every key of the file that the library has not read."""
    if isinstance(written, dict) and isinstance(read, dict):
        yield from (f"{at}{key}" for key in written.keys() - read.keys() - _OLD_KEYS)
        for key in written.keys() & read.keys():
            yield from _unread(written[key], read[key], f"{at}{key}.")
    elif isinstance(written, list) and isinstance(read, list):
        for number, (one, other) in enumerate(zip(written, read, strict=False)):
            yield from _unread(one, other, f"{at}{number}.")


def _beginning(processor: dict[str, Any]) -> tuple[int, ...]:
    """Return the ids that a post-processor, given as JSON, puts before a single text."""
    match processor["type"]:
        case "Sequence":
            parts = [part for part in processor["processors"] if part["type"] != "ByteLevel"]
            if len(parts) > 1:  # the library panics on most of these
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


def byte_counts(file: HuggingFaceFile) -> np.ndarray | None:
    """Return how many bytes each id stands for, None where the decoder does not say how tokens make a text."""
    model = file.model
    parts = _decoders(json.loads(model.decoder.__getstate__())) if model.decoder else []
    kinds = {part["type"] for part in parts}
    if not kinds & {"ByteLevel", "Metaspace", "ByteFallback"}:
        return None
    counts = np.zeros(file.vocab_size, np.float32)
    for token, id in model.get_vocab(with_added_tokens=True).items():
        # A byte-level token has a letter for each byte.
        is_byte = "ByteFallback" in kinds and _BYTE.fullmatch(token)
        text = token.replace(SPACE, " ")
        counts[id] = 1 if is_byte else len(token) if "ByteLevel" in kinds else len(text.encode())
    for id, added in model.get_added_tokens_decoder().items():
        counts[id] = 0 if added.special else len(added.content.encode())
    return counts


def _decoders(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
