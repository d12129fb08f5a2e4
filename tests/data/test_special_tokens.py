"""The ids that begin documents and prompts: what the file says, once, in the segment of theirs, or nothing."""

import dataclasses
import io

import numpy as np
import pytest
import sentencepiece
import tokenizers
from messages import refused
from tokenizers import processors

from jaxtrain.data import (
    BestFit,
    ByteTokenizer,
    ConcatenateAndSplit,
    DataConfig,
    HuggingFaceTokenizer,
    SentencePiece,
    TextFiles,
    bigram_loss,
    open_rows,
)
from jaxtrain.data.store import open_store

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<cls>": 3, "a": 4, "b": 5, "c": 6, "<": 7, "s": 8, ">": 9}
TEMPLATE = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
PROCESSORS = {
    "none": (None, ()),
    "byte level": (processors.ByteLevel(), ()),
    "before": (TEMPLATE, (1,)),
    "before and after": (
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]),
        (1,),
    ),
    "after": (processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)]), ()),
    "two before": (
        processors.TemplateProcessing(single="<s> <cls> $A", special_tokens=[("<s>", 1), ("<cls>", 3)]),
        (1, 3),
    ),
    "bert": (processors.BertProcessing(("</s>", 2), ("<cls>", 3)), (3,)),
    "roberta": (processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), (1,)),
    "llama 3": (processors.Sequence([processors.ByteLevel(trim_offsets=False), TEMPLATE]), (1,)),
}


def words(folder, processor) -> HuggingFaceTokenizer:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["<s>", "</s>", "<cls>"])
    if processor:
        model.post_processor = processor
    model.save(str(folder / "words.json"))
    return HuggingFaceTokenizer(path=str(folder / "words.json"), end_of_document="</s>")


@pytest.fixture
def llama(tmp_path) -> HuggingFaceTokenizer:
    return words(tmp_path, TEMPLATE)


@pytest.mark.parametrize("name", PROCESSORS)
def test_documents_and_prompts_begin_with_what_the_post_processor_puts_before_a_text(tmp_path, name):
    processor, beginning = PROCESSORS[name]
    tokenizer = words(tmp_path, processor)
    assert tokenizer.beginning == beginning
    assert tokenizer.encode_prompt("a b") == [*beginning, 4, 5]
    [[document]] = tokenizer.encode_documents([("a b",)])
    assert document.tolist() == [*beginning, 4, 5, 2] and document.dtype == np.int32
    assert tokenizer.encode("a b").tolist() == [4, 5]
    own = tokenizers.Tokenizer.from_file(tokenizer.path).encode("a b").ids
    assert own[: own.index(4)] == list(beginning)


def test_what_the_file_puts_before_a_text_can_be_turned_off_and_named(llama):
    assert dataclasses.replace(llama, begin_of_document=False).encode_prompt("a") == [4]
    assert dataclasses.replace(llama, begin_of_document="<cls>").encode_prompt("a") == [3, 4]
    with refused(ValueError, "begin_of_document='<bos>'", llama.path, "'<s>'"):
        dataclasses.replace(llama, begin_of_document="<bos>").encode_prompt("a")


def test_text_that_spells_the_token_stays_text_so_that_it_never_stands_twice(tmp_path):
    """Split into characters, which is all that tokens of this one have."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.add_special_tokens(["<s>", "</s>"])
    model.post_processor = TEMPLATE
    model.save(str(tmp_path / "characters.json"))
    tokenizer = HuggingFaceTokenizer(path=str(tmp_path / "characters.json"), end_of_document="</s>")
    assert tokenizer.encode_prompt("<s>a") == [1, 7, 8, 9, 4]
    assert tokenizer.encode_documents([("<s>a",)])[0][0].tolist() == [1, 7, 8, 9, 4, 2]


def test_an_empty_prompt_is_the_beginning_alone(llama):
    assert llama.encode_prompt("") == [1]
    assert ByteTokenizer().encode_prompt("") == []


def test_identity_tells_what_begins_documents_and_is_as_it_was_where_nothing_does(llama, tmp_path):
    kinds = [llama, *(dataclasses.replace(llama, begin_of_document=other) for other in (False, "<cls>"))]
    assert len({tokenizer.identity() for tokenizer in kinds}) == 3
    assert dataclasses.replace(llama, begin_of_document="<s>").identity() == llama.identity()
    assert kinds[1].identity().endswith(" </s>")


@pytest.fixture
def letters(tmp_path) -> TextFiles:
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number:02d}.txt").write_text(" ".join("abc"[i % 3] for i in range(number + 1)))
    return TextFiles(glob=f"{tmp_path}/text/*.txt")


def test_a_store_holds_the_beginning_once_a_document(llama, letters):
    store = open_store(letters, llama)
    assert (store.tokens[store.starts] == 1).all()
    assert (store.tokens == 1).sum() == (store.tokens == 2).sum() == len(store.starts) == 40
    without = open_store(letters, dataclasses.replace(llama, begin_of_document=False))
    np.testing.assert_array_equal(without.lengths + 1, store.lengths)
    assert (without.tokens != 1).all()


@pytest.mark.parametrize("packing", [BestFit(), ConcatenateAndSplit()])
def test_the_beginning_is_the_first_token_of_its_segment_and_is_never_a_target(llama, letters, packing):
    data = DataConfig(source=letters, tokenizer=llama, packing=packing, validation_fraction=0)
    rows = open_rows(data, split="train", sequence_length=64, seed=0, num_epochs=1)
    begun = 0
    for index in range(len(rows)):
        row = rows[index]
        at = np.flatnonzero((row.tokens == 1) & (row.segment_ids > 0))
        begun += len(at)
        assert (row.positions[at] == 0).all()
        assert (row.segment_ids[at] != row.segment_ids[at - 1])[at > 0].all()
        assert (row.targets[row.weights > 0] != 1).all()
    assert begun == 40


def test_a_bigram_model_counts_the_beginning_as_the_loader_hands_it_out(llama, letters):
    """After the beginning always comes "a": one more token a document that is easy to tell."""
    losses = [
        bigram_loss(
            DataConfig(source=letters, tokenizer=tokenizer, validation_fraction=0.2),
            batch_size=2,
            sequence_length=64,
            seed=0,
        )
        for tokenizer in (llama, dataclasses.replace(llama, begin_of_document=False))
    ]
    assert losses[0] < losses[1]


def pieces(folder, **options) -> SentencePiece:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to make a tokenizer of"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "pieces.model").write_bytes(model.getvalue())
    return SentencePiece(path=str(folder / "pieces.model"))


def test_a_sentence_piece_model_begins_documents_where_told_to(tmp_path):
    plain = pieces(tmp_path)
    begun = dataclasses.replace(plain, begin_of_document=True)
    ids = plain.encode("some words").tolist()
    assert plain.encode_prompt("some words") == ids and plain.beginning == ()
    assert begun.encode_prompt("some words") == [1, *ids]
    assert begun.encode_documents([("some words",)])[0][0].tolist() == [1, *ids, 2]
    assert begun.identity() != plain.identity()
    assert begun.decode(begun.encode_prompt("some words")) == "some words"


def test_a_sentence_piece_model_without_the_piece_is_refused_by_name(tmp_path):
    tokenizer = dataclasses.replace(pieces(tmp_path, bos_id=-1), begin_of_document=True)
    with refused(ValueError, tokenizer.path, "bos_id"):
        tokenizer.encode_prompt("some")
