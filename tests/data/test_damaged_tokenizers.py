"""A damaged tokenizer file is one ValueError that names it, whether it shows on loading, encoding or decoding."""

import base64
import io
import json
import random

import pytest
import sentencepiece
import tokenizers
from messages import refused
from tokenizers import processors

from jaxtrain.data import HuggingFaceTokenizer, SentencePiece

TEXTS = ["a b <s>", "", "né 漢字 \U0001f600", "x\0y"]


def word_level() -> dict:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return json.loads(model.to_str())


def use(content: bytes | dict, path) -> HuggingFaceTokenizer:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    tokenizer = HuggingFaceTokenizer(path=str(path), end_of_document="<s>")
    tokenizer.encode_documents([tuple(TEXTS)])
    tokenizer.decode(range(tokenizer.vocab_size + 3))
    return tokenizer


def without(key: str, *path: str) -> dict:
    content = word_level()
    node = content
    for name in path:
        node = node[name]
    del node[key]
    return content


def changed(**replaced) -> dict:
    return word_level() | replaced


TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
TWO = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "b": 2}, "unk_token": "<unk>"}
OUTSIDE = json.loads(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 77)]).__getstate__())
DAMAGED = {
    "empty": (b"", ("is not a `tokenizers` JSON file",)),
    "cut": (json.dumps(word_level()).encode()[:-40], ("is not a `tokenizers` JSON file",)),
    "no text": (b"\xff\xfe\0", ("is not a `tokenizers` JSON file",)),
    "deeply nested": (b"[" * 100_000, ("is not a `tokenizers` JSON file",)),
    "no token for unknown words": (
        without("<unk>", "model", "vocab"),
        ("cannot encode a text",),
    ),
    "two tokens of one id": (changed(model=TWO), ("id 2", "2 tokens", "'a'", "'b'")),
    "an added token with the id of another": (
        changed(added_tokens=[TOKEN | {"content": "a", "id": 1}]),
        ("'a'", "id 1"),
    ),
    "a key that the library passes over": (
        changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace", "patern": 1}]}),
        ("pre_tokenizer.pretokenizers.0.patern",),
    ),
    "a key of the model that the library passes over": (
        changed(model=word_level()["model"] | {"unk_tokens": "a"}),
        ("model.unk_tokens",),
    ),
    "no tokens": (changed(model=TWO | {"vocab": {}}, added_tokens=[]), ("no tokens",)),
    "a special token without ids": (
        without("<s>", "post_processor", "special_tokens"),
        ("'<s>'", "ids"),
    ),
    "a special token that is none": (changed(post_processor=OUTSIDE), ("[77]", 4)),
    "two templates in a row": (
        changed(post_processor={"type": "Sequence", "processors": [OUTSIDE, OUTSIDE]}),
        ("post-processor", "TemplateProcessing"),
    ),
    # The library panics on these, which is no Exception.
    "a normalizer that is no text": (
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": 1}),
        ("is not a `tokenizers` JSON file",),
    ),
    "a normalizer that is empty": (
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4)).decode()}),
        ("cannot encode a text",),
    ),
}


# What the library says of a file, and the order of tokens in its vocabulary.
UNREADABLE = {"<tokenizers>": r"(?<=`tokenizers` JSON file )\(.*\)"}
LIBRARY = dict.fromkeys(("empty", "cut", "no text", "deeply nested", "a normalizer that is no text"), UNREADABLE)
LIBRARY |= dict.fromkeys(
    ("no token for unknown words", "a normalizer that is empty"), {"<tokenizers>": r"(?<=a text )\(.*\)"}
)
LIBRARY["two tokens of one id"] = {"<tokens>": r"\['a', 'b'\]|\['b', 'a'\]"}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizers_file_is_refused_by_name(tmp_path, name):
    content, facts = DAMAGED[name]
    path = tmp_path / "tokenizer.json"
    with refused(ValueError, f"path={str(path)!r}", *facts, varies=LIBRARY.get(name)):
        use(content, path)


def test_a_whole_file_passes(tmp_path):
    assert use(word_level(), tmp_path / "tokenizer.json").encode_prompt("a b") == [1, 2, 3]


VALUES = (None, -1, 10**12, "", "x", [], {}, True, 1.5)


def spoiled(content: dict, random: random.Random) -> bytes:
    """Return the file with one of its values taken out or replaced, or cut off."""
    content = json.loads(json.dumps(content))
    node = content
    while True:
        key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not (isinstance(node[key], dict | list) and node[key] and random.random() < 0.7):
            break
        node = node[key]
    if random.random() < 0.3:
        del node[key]
    else:
        node[key] = random.choice(VALUES)
    written = json.dumps(content).encode()
    return written[: random.randrange(len(written))] if random.random() < 0.1 else written


def test_no_damage_to_a_tokenizers_file_is_anything_but_a_value_error_that_names_it(tmp_path):
    generator, refused = random.Random(0), 0
    for _ in range(300):
        try:
            use(spoiled(word_level(), generator), tmp_path / "tokenizer.json")
        except ValueError as error:
            assert "tokenizer.json" in str(error)
            refused += 1
    assert refused > 100  # the damage was done


def test_no_damage_to_a_sentence_piece_model_is_anything_but_a_value_error_that_names_it(tmp_path):
    model, generator, refused = io.BytesIO(), random.Random(0), 0
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["alpha beta né"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        normalization_rule_name="identity",
    )
    whole = model.getvalue()
    for _ in range(300):
        content = bytearray(whole)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        if generator.random() < 0.3:
            del content[generator.randrange(len(content)) :]
        (tmp_path / "pieces.model").write_bytes(content)
        tokenizer = SentencePiece(path=str(tmp_path / "pieces.model"), begin_of_document=True)
        try:
            tokenizer.encode_documents([tuple(TEXTS)])
            tokenizer.decode(range(tokenizer.vocab_size))
        except ValueError as error:
            assert "pieces.model" in str(error)
            refused += 1
    assert refused > 100


def test_an_empty_sentence_piece_model_is_refused_by_name(tmp_path):
    (tmp_path / "pieces.model").touch()
    with refused(ValueError, "pieces.model'", "SentencePiece", "empty"):
        _ = SentencePiece(path=str(tmp_path / "pieces.model")).vocab_size


@pytest.mark.parametrize("kind", [HuggingFaceTokenizer, SentencePiece])
def test_a_folder_and_a_name_that_no_file_has_are_refused_by_name(kind, tmp_path):
    for path, reason in ((str(tmp_path), "is not a file"), ("a\0b", "cannot be read"), ("", "cannot be read")):
        with refused(ValueError, f"{path=}", reason):
            _ = kind(path=path).vocab_size


@pytest.mark.parametrize("text", ["\ud800", "a \udfff"])
def test_half_a_surrogate_pair_is_encoded_as_a_question_mark(tmp_path, text):
    tokenizer = use(word_level(), tmp_path / "tokenizer.json")
    assert tokenizer.encode(text).tolist() == tokenizer.encode(text.encode(errors="replace").decode()).tolist()


def test_nothing_is_written_to_the_terminal_where_the_library_panics_on_loading(tmp_path, capfd):
    with pytest.raises(ValueError):
        use(DAMAGED["a normalizer that is no text"][0], tmp_path / "tokenizer.json")
    assert capfd.readouterr() == ("", "")
