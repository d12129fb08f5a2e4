"""The bigram model: a distribution, counted on training text only, measured on what validation yields."""

import itertools

import numpy as np
import pytest
from messages import refused

from jaxtrain.data import ByteTokenizer, DataConfig, bigram_loss, loader, open_rows
from jaxtrain.data.bigram import _pair_counts, _smoothed

ROWS = {"sequence_length": 64, "seed": 0}
SHAPE = {"batch_size": 4} | ROWS


@pytest.fixture
def config(many_files) -> DataConfig:
    return DataConfig(source=many_files, validation_fraction=0.2)


def _ids(config: DataConfig, split: str) -> list[list[int]]:
    (source,) = open_rows(config, split=split, sequence_length=64, seed=0).sources
    return [tokens.tolist() for tokens in source.document_tokens()]


def test_pairs_are_counted_on_the_training_split_alone_and_never_across_documents(config):
    counts = np.zeros((257, 257), np.int64)
    for ids in _ids(config, "train"):
        for first, second in itertools.pairwise(ids):
            counts[first, second] += 1
    np.testing.assert_array_equal(_pair_counts(open_rows(config, split="train", **ROWS), 257), counts)


def test_every_token_has_a_probability_after_every_other_and_they_sum_to_one():
    counts = np.random.default_rng(0).poisson(0.3, (30, 30))
    counts[3] = 0  # never seen: the unigram remains
    p = _smoothed(counts)
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(p[3], (counts.sum(axis=0) + 1) / (counts.sum() + 30))


def test_the_loss_is_the_mean_over_the_pairs_of_validation(config):
    table = -np.log(_smoothed(_pair_counts(open_rows(config, split="train", **ROWS), 257)))
    losses = [table[pair] for ids in _ids(config, "validation") for pair in itertools.pairwise(ids)]
    assert bigram_loss(config, **SHAPE) == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_limited_evaluation_is_measured_on_its_own_batches(config):
    table = -np.log(_smoothed(_pair_counts(open_rows(config, split="train", **ROWS), 257)))
    batches = itertools.islice(loader(config, split="validation", num_epochs=1, **SHAPE), 2)
    kept = [(table[b.tokens, b.targets] * b.weights, b.weights) for b in batches]
    expected = sum(loss.sum() for loss, _ in kept) / sum(weights.sum() for _, weights in kept)
    assert bigram_loss(config, **SHAPE, num_batches=2) == pytest.approx(expected, rel=1e-6)


def test_it_is_a_stricter_bar_than_adding_one(config):
    counts = _pair_counts(open_rows(config, split="train", **ROWS), 257)
    add_one = -np.log((counts + 1) / (counts.sum(axis=1, keepdims=True) + 257))
    losses = [add_one[pair] for ids in _ids(config, "validation") for pair in itertools.pairwise(ids)]
    assert bigram_loss(config, **SHAPE) < np.mean(losses)


class _Large(ByteTokenizer):
    vocab_size = 1025


def test_a_vocabulary_too_large_to_count_is_refused(many_files):
    with refused(ValueError, "vocab_size=1025", 1024):
        bigram_loss(DataConfig(source=many_files, tokenizer=_Large()), **SHAPE)
