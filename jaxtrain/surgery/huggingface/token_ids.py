"""The special tokens in the JSON files of a model folder, and checks that every id has one token."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxtrain.surgery.huggingface.files import AGAIN, own_file, read_json

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION = "generation_config.json"
Pairs = Callable[[dict[str, Any]], Iterator[tuple[str, int]]]  # from a JSON object to its tokens and their ids


def check_tokens(folder: Path) -> None:
    """Raise ValueError where the JSON files of a model folder have invalid ids, or contradict each other about them."""
    for name in ("config.json", GENERATION):
        special_ids(folder, name)
    _check_tables(folder)


def special_ids(folder: Path, name: str) -> dict[str, Any]:
    """Return the special ids in a JSON file of a model folder: each an id, a list of ids, or None."""
    file = own_file(folder, name)
    settings = read_json(file) if file else {}
    found = {key: settings[key] for key in TOKEN_IDS if key in settings}
    for key, value in found.items():
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(id) is int and abs(id) < 2**31 for id in ids):
            raise ValueError(f"{file}: {key}={str(value)[:60]} must be the number of a token, a list of them, or null")
    return found


def _check_tables(folder: Path) -> None:
    """Raise ValueError where the files of a tokenizer give one id to two tokens, or two ids to one."""
    token_of: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for name, pairs in TABLES.items():
        file = own_file(folder, name)
        for token, id in _checked(file, pairs) if file else ():
            if token_of.setdefault(id, token) != token:
                raise ValueError(f"{file}: id {id} is of two tokens, {token_of[id]!r} and {token!r}: give each its own")
            if id_of.setdefault(token, id) != id:
                raise ValueError(f"{file}: {token!r} has two ids, {id_of[token]} and {id}: give it one")


def _checked(file: Path, pairs: Pairs) -> list[tuple[str, int]]:
    content = read_json(file)
    found: list[tuple[str, int]] | None
    try:
        found = list(pairs(content))
    except (TypeError, ValueError, LookupError, AttributeError):
        found = None
    if found is None or not all(isinstance(token, str) and type(id) is int for token, id in found):
        raise ValueError(f"{file} does not give its tokens as others of its name do: {AGAIN}")
    return found


def _of_tokenizer(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    vocabulary = content.get("model", {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of their ids
        yield from ((piece, id) for id, (piece, _) in enumerate(vocabulary))
    else:
        yield from vocabulary.items()
    for token in content.get("added_tokens") or ():
        yield token["content"], token["id"]


def _of_tokenizer_config(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for id, token in (content.get("added_tokens_decoder") or {}).items():
        yield token["content"], int(id)


TABLES: dict[str, Pairs] = {
    "tokenizer.json": _of_tokenizer,
    "added_tokens.json": lambda content: iter(content.items()),
    "tokenizer_config.json": _of_tokenizer_config,
}
