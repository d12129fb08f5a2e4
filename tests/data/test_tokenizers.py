"""Tokenizers: texts come back, specials leak neither way, identity follows content."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from jaxtrain.cli.tokenizer import train_tokenizer
from jaxtrain.data import ByteTokenizer, HuggingFaceTokenizer, SentencePiece, TextFiles, Tokenizer

TEXT = "alpha beta gamma, alpha (beta) gamma: delta delta epsilon.\n" * 40
AWKWARD = ["", "x", "né ß 漢字 \U0001f600", "  two  spaces\tand\n\nlines\r\n", "\0\x7f"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> TextFiles:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return TextFiles(glob=str(path))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory, text_file) -> HuggingFaceTokenizer:
    return train_tokenizer(text_file, vocab_size=280, path=str(tmp_path_factory.mktemp("bpe") / "bpe.json"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> SentencePiece:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("pieces") / "pieces.model"
    path.write_bytes(model.getvalue())
    return SentencePiece(path=str(path))


@pytest.fixture(params=["bytes", "bpe", "pieces"])
def tokenizer(request) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", AWKWARD)
def test_text_comes_back_whole(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert tokenizer.decode(ids) == text


@given(st.text())
def test_any_text_comes_back_whole_from_bytes(text):
    tokenizer = ByteTokenizer()
    expected = text.encode(errors="replace").decode()  # half a surrogate pair has no bytes
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_a_batch_is_encoded_as_its_texts_one_by_one(tokenizer):
    for together, text in zip(tokenizer.encode_batch([*AWKWARD, TEXT]), [*AWKWARD, TEXT], strict=True):
        np.testing.assert_array_equal(together, tokenizer.encode(text))


def test_special_and_unknown_ids_are_dropped_when_decoding(tokenizer):
    ids = tokenizer.encode("alpha").tolist()
    special, unknown = tokenizer.end_of_document_id, tokenizer.vocab_size + 7
    assert tokenizer.decode([*ids, special, unknown]) == "alpha"
    assert tokenizer.decode(np.array([special])) == ""


def test_text_that_spells_a_special_token_does_not_end_a_document(bpe):
    ids = bpe.encode("alpha <|endoftext|> beta")
    assert bpe.end_of_document_id not in ids
    assert bpe.decode(ids) == "alpha <|endoftext|> beta"


def test_broken_utf8_becomes_replacement_characters():
    assert ByteTokenizer().decode([0x61, 0xC3, 0x62]) == "a\ufffdb"


def test_bytes_have_257_ids_and_256_ends_a_document():
    assert (ByteTokenizer().vocab_size, ByteTokenizer().end_of_document_id) == (257, 256)


def test_a_trained_tokenizer_has_the_size_asked_for_and_shortens_its_text(bpe):
    assert bpe.vocab_size == 280
    assert len(bpe.encode(TEXT)) < len(TEXT) / 2


def test_training_twice_gives_the_same_tokenizer_and_another_size_another_identity(bpe, text_file, tmp_path):
    again = train_tokenizer(text_file, vocab_size=280, path=str(tmp_path / "again.json"))
    other = train_tokenizer(text_file, vocab_size=270, path=str(tmp_path / "other.json"))
    assert again.identity() == bpe.identity() != other.identity()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["again.json", "other.json"]


def test_a_tokenizer_trained_anew_under_the_same_name_replaces_the_old_one(text_file, tmp_path):
    path = str(tmp_path / "same.json")
    assert train_tokenizer(text_file, vocab_size=260, path=path).vocab_size == 260
    assert train_tokenizer(text_file, vocab_size=280, path=path).vocab_size == 280


def test_truncation_that_a_published_file_carries_is_ignored(bpe, tmp_path):
    content = json.loads(Path(bpe.path).read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "short.json").write_text(json.dumps(content))
    short = dataclasses.replace(bpe, path=str(tmp_path / "short.json"))
    np.testing.assert_array_equal(short.encode(TEXT), bpe.encode(TEXT))


def test_training_refuses_a_vocabulary_without_room_for_the_bytes_and_a_missing_folder(text_file, tmp_path):
    with pytest.raises(ValueError, match="vocab_size=256 must be at least 257"):
        train_tokenizer(text_file, vocab_size=256, path=str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="folder that does not exist"):
        train_tokenizer(text_file, vocab_size=300, path=str(tmp_path / "no" / "x.json"))


@pytest.mark.parametrize("kind", [HuggingFaceTokenizer, SentencePiece])
def test_a_missing_file_and_a_file_of_another_kind_are_refused_by_name(kind, tmp_path):
    (tmp_path / "plain").write_text("not a tokenizer")
    with pytest.raises(ValueError, match=r"path='.*missing' cannot be read"):
        _ = kind(path=str(tmp_path / "missing")).vocab_size
    with pytest.raises(ValueError, match=r"path='.*plain' is not a"):
        _ = kind(path=str(tmp_path / "plain")).vocab_size


def test_an_end_of_document_that_is_no_token_is_refused_naming_the_special_ones(bpe):
    with refused(ValueError, "end_of_document='</s>'", bpe.path, ["<|endoftext|>"]):
        _ = dataclasses.replace(bpe, end_of_document="</s>").end_of_document_id


@pytest.mark.parametrize("text", [text for text in AWKWARD if text] + [TEXT])
def test_the_bytes_of_ids_add_up_to_those_of_the_text(tokenizer, text):
    counts = tokenizer.byte_counts()
    assert counts.shape == (tokenizer.vocab_size,) and counts[tokenizer.end_of_document_id] == 0
    spaces = isinstance(tokenizer, SentencePiece)  # it puts a space before a text
    assert counts[tokenizer.encode(text)].sum() == len(text.encode()) + spaces


def test_a_file_that_does_not_say_how_tokens_make_a_text_has_no_bytes(bpe, tmp_path):
    content = json.loads(Path(bpe.path).read_text())
    assert content["decoder"]["type"] == "ByteLevel"
    path = tmp_path / "words.json"
    path.write_text(json.dumps(content | {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False}}))
    assert HuggingFaceTokenizer(path=str(path)).byte_counts() is None
