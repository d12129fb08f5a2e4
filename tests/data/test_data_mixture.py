"""Mixtures: shares of tokens as asked, every prefix near them, any row found by itself."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from jaxtrain.data import DataConfig, Mixture, Rows, TextFiles, Weighted, open_rows
from jaxtrain.data.sources.mixture import Interleaving, by_weight

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)
SHARES = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(tuple)


@given(weights=WEIGHTS, rows=st.integers(0, 10**9))
def test_every_prefix_of_a_mixture_is_within_a_few_rows_of_its_weights(weights, rows):
    expected = np.array(weights) / sum(weights) * rows
    counts = by_weight(np.array(weights)).counts(rows)
    assert sum(counts) == rows
    assert np.abs(np.array(counts) - expected).max() <= len(weights) + rows * 1e-8


@given(shares=SHARES)
def test_each_row_is_the_next_of_its_source(shares):
    interleaving, seen = Interleaving(shares), [0] * len(shares)
    for row in range(2 * sum(shares)):
        source, before = interleaving.locate(row)
        assert before == seen[source]
        seen[source] += 1
    assert seen == [2 * share for share in shares]


def test_weights_far_finer_than_hundredths_of_the_smallest_are_kept():
    assert by_weight(np.array([1.0, 1.004])).counts(10**6) == pytest.approx([499_001.996, 500_998.004], abs=2)


def _source(folder: Path, name: str, *, documents: int, characters: int) -> TextFiles:
    for number in range(documents):
        file = folder / name / f"{number}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(name[0] * characters)
    return TextFiles(glob=f"{folder}/{name}/*.txt")


@pytest.fixture
def large_and_small(tmp_path) -> tuple[TextFiles, TextFiles]:
    """Sixteen to one in tokens, and the small one's rows are a third padding: 40 tokens a document in rows of 64."""
    large = _source(tmp_path, "large", documents=32, characters=640)
    return large, _source(tmp_path, "small", documents=32, characters=40)


def _tokens_of(rows: Rows, first: int) -> np.ndarray:
    """Return how many tokens each source has in the first rows."""
    return np.array([source.tokens_in(n) for source, n in zip(rows.sources, rows.counts(first), strict=True)])


def _tokens(mixture: Mixture, rows: int) -> np.ndarray:
    config = DataConfig(source=mixture, validation_fraction=0)
    return _tokens_of(open_rows(config, split="train", sequence_length=64, seed=0), rows)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (1.0, 7.0)])
def test_given_weights_are_shares_of_tokens_even_where_rows_carry_padding(large_and_small, shares):
    mixture = Mixture(sources=tuple(Weighted(source=s, weight=w) for s, w in zip(large_and_small, shares, strict=True)))
    tokens = _tokens(mixture, 20_000)
    np.testing.assert_allclose(tokens / tokens.sum(), np.array(shares) / sum(shares), atol=2e-4)


@pytest.mark.parametrize(("temperature", "ratio"), [(1.0, 16), (2.0, 4), (4.0, 2), (float("inf"), 1)])
def test_temperature_takes_the_root_of_the_ratio_of_token_counts(large_and_small, temperature, ratio):
    large, small = _tokens(Mixture(sources=_unweighted(large_and_small), temperature=temperature), 50_000)
    assert large / small == pytest.approx(ratio, rel=2e-3)


def _unweighted(sources) -> tuple[Weighted, ...]:
    return tuple(Weighted(source=source) for source in sources)


def test_the_tokens_of_each_source_are_the_sum_of_the_weights_of_the_rows(large_and_small):
    config = DataConfig(source=Mixture(sources=_unweighted(large_and_small), temperature=3.0), validation_fraction=0)
    rows = open_rows(config, split="train", sequence_length=64, seed=5)
    large_id = ord("l")
    expected = np.zeros(2)
    for index in range(300):  # beyond an epoch of either source
        row = rows[index]
        expected += row.weights.sum() * np.array([large_id in row.tokens, large_id not in row.tokens])
    assert rows.labels == [repr(source) for source in large_and_small]
    np.testing.assert_array_equal(_tokens_of(rows, 300), expected)


def test_a_finite_pass_over_a_mixture_holds_every_row_of_every_source(large_and_small):
    mixture = Mixture(sources=tuple(Weighted(source=source, weight=1.0) for source in large_and_small))
    config = DataConfig(source=mixture, validation_fraction=0)
    rows = open_rows(config, split="train", sequence_length=64, seed=0, num_epochs=2)
    assert _tokens_of(rows, len(rows)).tolist() == [2 * 32 * 640, 2 * 32 * 40]


def test_the_same_source_twice_is_told_apart_by_labels(large_and_small):
    twice = Mixture(sources=_unweighted((large_and_small[0],) * 2))
    rows = open_rows(DataConfig(source=twice), split="train", sequence_length=64, seed=0)
    assert len(set(rows.labels)) == len(rows.labels) == 2


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda s: Mixture(sources=()), ("sources", "one")),
        (lambda s: Mixture(sources=(Weighted(source=s, weight=1.0), Weighted(source=s))), ("weight", "every source")),
        (lambda s: Mixture(sources=_unweighted([s]), temperature=0.0), ("temperature=0.0", "positive")),
        (
            lambda s: Mixture(sources=(Weighted(source=s, weight=1.0),), temperature=2.0),
            ("temperature=2.0",),
        ),
        (lambda s: Weighted(source=s, weight=0.0), ("weight=0.0", "positive")),
        (lambda s: DataConfig(source=s, validation_fraction=1.0), ("validation_fraction=1.0", 0)),
    ],
    ids=["no sources", "a weight missing", "temperature 0", "weights and temperature", "weight 0", "all held out"],
)
def test_an_impossible_mixture_is_refused_by_its_field(make, facts):
    with refused(ValueError, *facts):
        make(TextFiles(glob="x"))
