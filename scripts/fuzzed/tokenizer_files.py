"""Tokenizer files: `tokenizers` JSON and SentencePiece models.

Silently wrong: an id that is not below the size of the vocabulary, two tokens of one id, or, in JSON, a key or a token
of the file that is not in what was read of it.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
import tokenizers

from fuzzed import json_files, mutations
from fuzzed.case import Case
from fuzzed.data_files import TEXTS
from jaxtrain.cli.tokenizer import train_tokenizer
from jaxtrain.data import HuggingFaceTokenizer, SentencePiece, TextFiles, Tokenizer


def files(random: Random, folder: Path) -> Iterator[Case]:
    merged, pieces = _train_json(folder), _train_pieces()
    document = json.loads(merged)
    yield _file(folder / "tokenizer.json", "valid", merged, valid=True)
    yield _file(folder / "tokenizer.model", "valid", pieces, valid=True)
    while True:
        match random.choice(("document", "document", "json", "pieces")):
            case "document":
                what, damaged = json_files.damage(random, document)
                yield _file(folder / "tokenizer.json", what, json.dumps(damaged).encode())
            case "json":
                yield _file(folder / "tokenizer.json", *mutations.data(random, merged))
            case "pieces":
                yield _file(folder / "tokenizer.model", *mutations.data(random, pieces))


def _train_json(folder: Path) -> bytes:
    (folder / "text.txt").write_text("\n".join(TEXTS) * 3)
    train_tokenizer(TextFiles(glob=str(folder / "text.txt")), vocab_size=300, path=str(folder / "valid.json"))
    return (folder / "valid.json").read_bytes()


def _train_pieces() -> bytes:
    model = io.BytesIO()
    lines = iter(["alpha beta gamma delta", "epsilon zeta eta theta"] * 20)
    options = {"vocab_size": 320, "hard_vocab_limit": False, "model_type": "bpe", "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, minloglevel=2, **options)
    return model.getvalue()


def _file(path: Path, what: str, content: bytes, *, valid: bool = False) -> Case:
    kind = HuggingFaceTokenizer if path.suffix == ".json" else SentencePiece

    def attempt() -> tuple[Tokenizer, list[int]]:
        path.write_bytes(content)
        tokenizer = kind(path=str(path))
        ids = [id for encoded in tokenizer.encode_batch(TEXTS) for id in encoded.tolist()]
        tokenizer.decode(ids)
        return tokenizer, [*ids, tokenizer.end_of_document_id]

    def fault(made: tuple[Tokenizer, list[int]]) -> str | None:
        tokenizer, ids = made
        if not all(0 <= id < tokenizer.vocab_size for id in ids):
            return f"ids from {min(ids)} to {max(ids)}, and a vocabulary of {tokenizer.vocab_size}"
        return _lost(content) if kind is HuggingFaceTokenizer else None

    return Case("tokenizer file", f"{path.name}, {what}", attempt, fault, (path.name,), valid)


def _lost(content: bytes) -> str | None:
    document = json.loads(content)
    read = json.loads(tokenizers.Tokenizer.from_str(content.decode()).to_str())
    vocabulary = document["model"]["vocab"]
    own = {token["content"]: token["id"] for token in document.get("added_tokens") or []}
    if len({*vocabulary.values(), *own.values()}) < len(vocabulary | own):
        return "two tokens of one id"
    return next(_missing(document, read, "the file"), None)


def _missing(written: Any, read: Any, at: str) -> Iterator[str]:
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            if key not in read:
                yield f"{at} has {key!r}, which was not read"
            else:
                yield from _missing(value, read[key], f"{at}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) != len(read):
        yield f"{at} has {len(written)} entries, of which {len(read)} were read"
