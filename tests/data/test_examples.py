"""Masked examples: how many tokens ask, what is shown of them, and the same whatever the mesh."""

import dataclasses

import numpy as np
import pytest
from messages import refused
from tiny import variant

from jaxtrain.data import ByteTokenizer, DataConfig, TextFiles, loader, open_rows, stream_of
from jaxtrain.data.examples import MaskedTokens, NextTokens
from jaxtrain.nn.masks import Bidirectional
from jaxtrain.shapes import Batch

MASK, LENGTH = 257, 100_000


def _row() -> Batch:
    tokens = np.random.default_rng(0).integers(0, 256, LENGTH).astype(np.int32)
    segments = np.ones(LENGTH, np.int32)
    segments[-1000:] = 0
    return Batch(tokens, np.roll(tokens, -1), np.ones(LENGTH, np.float32), segments, np.arange(LENGTH, dtype=np.int32))


def test_thirty_percent_of_the_tokens_ask_and_none_of_the_padding():
    row = _row()
    example = MaskedTokens(mask=MASK)(row, vocab_size=257, rng=np.random.default_rng(1))
    asks = example.weights == 1
    assert asks[:-1000].mean() == pytest.approx(0.3, abs=0.005) and not asks[-1000:].any()
    np.testing.assert_array_equal(example.targets, row.tokens)
    np.testing.assert_array_equal(example.tokens[~asks], row.tokens[~asks])


def test_of_those_that_ask_a_part_is_hidden_a_part_is_another_and_a_part_is_shown():
    """Devlin et al. (2018), section 3.1: 80%, 10% and 10%; one in 257 of the random ones is the token itself."""
    row = _row()
    example = MaskedTokens(mask=MASK)(row, vocab_size=257, rng=np.random.default_rng(1))
    asks = example.weights == 1
    hidden, same = example.tokens[asks] == MASK, example.tokens[asks] == row.tokens[asks]
    assert hidden.mean() == pytest.approx(0.8, abs=0.01)
    assert same.mean() == pytest.approx(0.1, abs=0.01)
    others = example.tokens[asks][~hidden & ~same]
    assert len(np.unique(others)) == 257 and np.bincount(others).std() / np.bincount(others).mean() < 0.5


@pytest.fixture
def data(tmp_path):
    for number in range(4):
        text = "".join(np.random.default_rng(number).choice(list("abcdef \n"), 500))
        (tmp_path / f"{number}.txt").write_text(text)
    examples = MaskedTokens(mask=MASK)
    return DataConfig(source=TextFiles(glob=f"{tmp_path}/*.txt"), validation_fraction=0.3, examples=examples)


def test_a_row_hides_other_tokens_in_every_epoch_and_the_same_ones_on_any_process(data):
    rows = open_rows(data, split="train", sequence_length=64, seed=0)
    again = open_rows(data, split="train", sequence_length=64, seed=0)
    for one, other in zip(rows[3], again[3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(rows[0].weights, rows[1].weights)
    whole = next(loader(data, split="train", batch_size=4, sequence_length=64, seed=0))
    part = next(loader(data, split="train", batch_size=4, sequence_length=64, seed=0, rows=[2]))
    np.testing.assert_array_equal(part.weights[0], whole.weights[2])


def test_the_name_of_a_stream_says_what_is_asked_and_stays_for_next_tokens(data):
    plain = dataclasses.replace(data, examples=NextTokens())
    masked, before = (stream_of(own, (), sequence_length=64, seed=0) for own in (data, plain))
    assert masked == before.replace(", text ", f", {data.examples}, text ")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"rate": 0.0}, ["rate=0.0"]),
        ({"mask": -1}, ["mask=-1"]),
        ({"random": 0.6, "kept": 0.5}, ["random=0.6", "kept=0.5"]),
    ],
    ids=["rate", "mask", "parts"],
)
def test_what_cannot_be_masked_is_refused(changes, facts):
    with refused(ValueError, *facts):
        MaskedTokens(**{"mask": MASK} | changes)


def test_a_mask_that_is_no_token_of_the_model_is_refused():
    with refused(ValueError, "mask=257", "model.vocab_size=257"):
        MaskedTokens(mask=MASK).check(variant(vocab_size=ByteTokenizer().vocab_size))


def test_next_tokens_of_a_model_that_sees_them_are_refused():
    block = variant().pattern[0]
    ahead = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, mask=Bidirectional()))
    with refused(ValueError, "model.pattern[1].mixer", "causal=False", "MaskedTokens"):
        NextTokens().check(variant(pattern=(block, ahead)))
