"""The tokenizer of a Hugging Face folder, and the special tokens that its files name."""

import dataclasses
from pathlib import Path

from jaxtrain.cli.imported import TOKENIZER_CONFIG, settings
from jaxtrain.data import HuggingFaceTokenizer, SentencePiece, Tokenizer
from jaxtrain.surgery.huggingface.token_ids import special_ids

type FileTokenizer = HuggingFaceTokenizer | SentencePiece
TOKENIZER_FILES: dict[type[FileTokenizer], str] = {
    HuggingFaceTokenizer: "tokenizer.json",
    SentencePiece: "tokenizer.model",
}


def tokenizer_of(source: Path) -> FileTokenizer | None:
    """Return the tokenizer of a Hugging Face folder, or None where the folder has no file of a known one."""
    file = source / TOKENIZER_FILES[HuggingFaceTokenizer]
    if file.exists():
        tokenizer = HuggingFaceTokenizer(path=str(file))
        tokenizer = dataclasses.replace(tokenizer, begin_of_document=begin_of_document(source, tokenizer))
        end = end_of_document(source, tokenizer)
        return dataclasses.replace(tokenizer, end_of_document=end) if end else tokenizer
    file = source / TOKENIZER_FILES[SentencePiece]
    if file.exists():
        # The file does not say whether texts begin with its begin-of-sequence piece. Without an add_bos_token they do
        # if the file has such a piece: the models of Llama, Mistral and Gemma were trained so.
        model, told = SentencePiece(path=str(file)), add_bos_token(source)
        return dataclasses.replace(model, begin_of_document=model.has_begin_of_sequence if told is None else told)
    return None


def add_bos_token(source: Path) -> bool | None:
    """Return `add_bos_token` of tokenizer_config.json, or None where it is absent."""
    told = settings(source, TOKENIZER_CONFIG).get("add_bos_token")
    if not isinstance(told, bool | None):
        raise ValueError(f"{source / TOKENIZER_CONFIG}: add_bos_token is {told!r}: make it true or false")
    return told


def begin_of_document(source: Path, tokenizer: HuggingFaceTokenizer) -> bool | str:
    """Return the `begin_of_document` of a tokenizer, from tokenizer_config.json or else from tokenizer.json."""
    file, told = source / TOKENIZER_CONFIG, add_bos_token(source)
    if told is None or told == bool(tokenizer.beginning):
        return told is not False
    print(f"{file} has add_bos_token {told}, and tokenizer.json does not do so: the run does, see begin_of_document")
    if not told:
        return False
    token = settings(source, file.name).get("bos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise ValueError(
            f"{file}: add_bos_token is true, and bos_token is no text: make it one, or add_bos_token false"
        )
    return token


def end_of_document(source: Path, tokenizer: HuggingFaceTokenizer) -> str | None:
    """Return the token that ends a document, or None where the files name none.

    It is in tokenizer_config.json or, by its id, in config.json; a tokenizer of BERT has a separator instead.
    """
    token = special_token(source, "eos_token")
    if token is None:
        ids = special_ids(source, "config.json").get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        token = tokenizer.token(first) if isinstance(first, int) else None
    return token or special_token(source, "sep_token")


def mask_of(source: Path, tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that hides others, or None where a folder's tokenizer has none."""
    token = special_token(source, "mask_token")
    return tokenizer.id(token) if token and isinstance(tokenizer, HuggingFaceTokenizer) else None


def special_token(source: Path, name: str) -> str | None:
    """Return a special token of tokenizer_config.json, or None where it is absent."""
    token = settings(source, TOKENIZER_CONFIG).get(name)
    if isinstance(token, dict):
        token = token.get("content", token)
    if not isinstance(token, str | None):
        raise ValueError(f"{source / TOKENIZER_CONFIG}: {name} is no text: make it one, or null")
    return token
