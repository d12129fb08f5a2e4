"""The loader: one global order for any number of processes, exact resumption, fields that keep documents apart."""

import itertools
import threading
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from messages import refused
from patience import PATIENCE_SECONDS, wait_until

from jaxtrain.data import (
    BestFit,
    ByteTokenizer,
    ConcatenateAndSplit,
    DataConfig,
    Mixture,
    TextFiles,
    Weighted,
    describe_batch,
    loader,
    open_rows,
)
from jaxtrain.data.rows import Rows
from jaxtrain.data.source_rows import SourceRows
from jaxtrain.shapes import Batch

B, L = 8, 64
PACKINGS = [ConcatenateAndSplit(), BestFit()]


@pytest.fixture(params=PACKINGS, ids=["concatenate", "best_fit"])
def config(request, many_files) -> DataConfig:
    return DataConfig(source=many_files, validation_fraction=0.2, packing=request.param)


@pytest.fixture
def mixed(many_files, one_file) -> DataConfig:
    parts = (Weighted(source=many_files, weight=2.0), Weighted(source=one_file, weight=1.0))
    return DataConfig(source=Mixture(sources=parts), validation_fraction=0.2)


def _loader(config: DataConfig, split: str = "train", **rest):
    return loader(config, split=split, **({"batch_size": B, "sequence_length": L, "seed": 0} | rest))


def _take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def _assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
            np.testing.assert_array_equal(a, b)


def _epoch(config: DataConfig, split: str = "train", **rest) -> list[Batch]:
    return list(_loader(config, split, num_epochs=1, **rest))


def test_batches_have_static_shapes_and_the_types_of_the_step(config):
    for batch in _epoch(config):
        assert [leaf.shape for leaf in jax.tree.leaves(batch)] == [(B, L)] * 6
        assert [leaf.dtype for leaf in jax.tree.leaves(batch)] == [np.dtype(t) for t in "iifiii"]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_order_does_not_depend_on_the_number_of_processes(config, mixed, processes):
    share = B // processes
    for data in (config, mixed):
        parts = [_loader(data, rows=range(p * share, (p + 1) * share)) for p in range(processes)]
        together = [
            jax.tree.map(lambda *leaves: np.concatenate(leaves), *part)
            for part in zip(*(_take(part, 40) for part in parts), strict=True)
        ]
        _assert_same(together, _take(_loader(data), 40))
        assert len({str(part.get_state()) for part in parts}) == 1


def test_a_process_may_ask_for_any_rows_in_any_order(config):
    picked = _take(_loader(config, rows=[5, 0, 3]), 3)
    _assert_same(picked, [jax.tree.map(lambda leaf: leaf[[5, 0, 3]], batch) for batch in _take(_loader(config), 3)])


@pytest.mark.parametrize("at", [0, 1, 7, 33])
def test_resumed_equals_uninterrupted_across_epochs_and_on_another_number_of_processes(config, mixed, at):
    for data in (config, mixed):
        whole = _take(_loader(data), 45)
        stopped = _loader(data)
        _take(stopped, at)
        resumed, half = _loader(data), _loader(data, rows=range(B // 2))
        resumed.set_state(stopped.get_state())
        half.set_state(stopped.get_state())
        _assert_same(_take(resumed, 45 - at), whole[at:])
        _assert_same(_take(half, 45 - at), [jax.tree.map(lambda leaf: leaf[: B // 2], batch) for batch in whole[at:]])


def test_state_counts_batches_consumed_not_batches_built_ahead(config, monkeypatch):
    built = []
    original = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda self, index: built.append(index) or original(self, index))
    batches = _loader(config)
    _take(batches, 3)
    wait_until(lambda: len(built) >= 6 * B)  # in the background: nobody asks for them here
    assert batches.get_state() == {"next_index": 3}


def test_four_batches_are_read_at_once(config, monkeypatch):
    """Each of the first four reads of a row waits for the other three, which are of other batches."""
    reads, together = itertools.count(), threading.Barrier(4, timeout=PATIENCE_SECONDS)
    original = SourceRows.row

    def row(self, index):
        if next(reads) < 4:
            together.wait()
        return original(self, index)

    monkeypatch.setattr(SourceRows, "row", row)
    _take(batches := _loader(config), 4)
    batches.close()


def _documents(source: TextFiles, split: str, config: DataConfig) -> list[tuple[int, ...]]:
    """The split's documents as ids, found through the rows' own source and not through packing."""
    (rows,) = open_rows(config, split=split, sequence_length=L, seed=0).sources
    return [tuple(tokens.tolist()) for tokens in rows.document_tokens()]


def _pairs_of(batches: list[Batch]) -> list[tuple[int, int]]:
    kept = [batch.weights == 1 for batch in batches]
    tokens = np.concatenate([batch.tokens[k] for batch, k in zip(batches, kept, strict=True)])
    targets = np.concatenate([batch.targets[k] for batch, k in zip(batches, kept, strict=True)])
    return sorted(zip(tokens.tolist(), targets.tolist(), strict=True))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_epoch_holds_every_pair_of_every_document_once(config, split):
    expected = sorted(pair for ids in _documents(config.source, split, config) for pair in itertools.pairwise(ids))
    assert _pairs_of(_epoch(config, split)) == expected


def test_an_epoch_is_a_permutation_of_the_next(config):
    rows = open_rows(config, split="train", sequence_length=L, seed=0).sources[0].rows_per_epoch
    endless = open_rows(config, split="train", sequence_length=L, seed=0)
    first, second = ([endless[epoch * rows + i] for i in range(rows)] for epoch in range(2))
    assert _pairs_of(first) == _pairs_of(second)
    assert any((a.tokens != b.tokens).any() for a, b in zip(first, second, strict=True))


def _segments(batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield tokens, targets, weights and positions of each segment, in order."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            here = np.flatnonzero(batch.segment_ids[row] == segment)
            assert (np.diff(here) == 1).all()
            yield tuple(leaf[row][here] for leaf in (batch.tokens, batch.targets, batch.weights, batch.positions))


def test_a_segment_is_a_stretch_of_one_document_and_loss_stays_inside_it(config):
    documents = ["," + ",".join(map(str, ids)) + "," for ids in _documents(config.source, "train", config)]
    segments = 0
    for batch in _epoch(config):
        for tokens, targets, weights, positions in _segments(batch):
            stretch = "," + ",".join(map(str, [*tokens, targets[-1]])) + ","
            assert any(stretch in document for document in documents)
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            assert (weights == 1).all()
            assert ByteTokenizer().end_of_document_id not in tokens  # nothing follows it in its document
            segments += 1
    assert segments > len(documents)


def test_segments_count_from_one_and_padding_is_zero_in_every_field(config):
    padding = 0
    for batch in _epoch(config):
        blank = batch.segment_ids == 0
        padding += blank.sum()
        assert all((leaf[blank] == 0).all() for leaf in jax.tree.leaves(batch))
        for ids in batch.segment_ids:
            filled = ids[ids > 0]
            assert (ids[len(filled) :] == 0).all()
            assert set(np.diff(filled, prepend=0).tolist()) <= {0, 1}
    assert padding


def test_best_fit_leaves_every_document_that_fits_whole(many_files):
    config = DataConfig(source=many_files, validation_fraction=0.2)
    fitting = [ids for ids in _documents(many_files, "train", config) if len(ids) - 1 <= L]
    segments = [
        (*tokens.tolist(), int(targets[-1])) for batch in _epoch(config) for tokens, targets, *_ in _segments(batch)
    ]
    assert len(fitting) > 10
    assert all(ids in segments for ids in fitting)


def test_a_last_batch_is_filled_up_with_rows_of_no_weight(config):
    rows = len(open_rows(config, split="validation", sequence_length=L, seed=0, num_epochs=1))
    batches = _epoch(config, "validation", batch_size=rows - 1)
    assert [batch.tokens.shape[0] for batch in batches] == [rows - 1, rows - 1]
    assert batches[1].weights[0].any() and not batches[1].weights[1:].any() and not batches[1].segment_ids[1:].any()


def test_the_pairs_of_a_pass_do_not_depend_on_batch_size_or_sequence_length(config):
    expected = _pairs_of(_epoch(config, "validation"))
    assert _pairs_of(_epoch(config, "validation", batch_size=3)) == expected
    assert _pairs_of(_epoch(config, "validation", sequence_length=17)) == expected


def test_a_phase_with_another_batch_size_goes_on_at_the_row_where_the_last_one_stopped(config):
    rows = np.concatenate([batch.tokens for batch in _take(_loader(config), 6)])
    (after,) = _take(_loader(config, batch_size=2 * B, rows_consumed=3 * B), 1)
    np.testing.assert_array_equal(after.tokens, rows[3 * B : 5 * B])


def test_a_finite_pass_may_start_at_a_row_and_still_ends_with_the_last(config):
    whole = _epoch(config)
    _assert_same(_epoch(config, rows_consumed=2 * B), whole[2:])


def test_another_seed_is_another_order(config):
    (one,), (other,) = _take(_loader(config), 1), _take(_loader(config, seed=1), 1)
    assert (one.tokens != other.tokens).any()


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_single_file_trains_on_its_beginning_and_validates_on_its_end(one_file, packing):
    config = DataConfig(source=one_file, validation_fraction=0.1, packing=packing)
    ((train,), (held_out,)) = (_documents(one_file, split, config) for split in ("train", "validation"))
    (text,) = (document.text for document in one_file.documents())
    assert (*train, *held_out) == (*text.encode(), ByteTokenizer().end_of_document_id)
    assert len(held_out) == (len(text) + 1) // 10
    filled = np.concatenate([batch.weights for batch in _epoch(config)]).any(axis=1)
    assert filled.sum() == -(-(len(train) - 1) // L)
    assert _pairs_of(_epoch(config)) == sorted(itertools.pairwise(train))


def test_a_url_is_read_like_a_file(memory):
    for number in range(3):
        memory.pipe(f"/texts/{number}.txt", f"remote text {number} ".encode() * 50)
    config = DataConfig(source=TextFiles(glob="memory://texts/*.txt"), validation_fraction=0)
    text = ByteTokenizer().decode(np.concatenate([batch.tokens.ravel() for batch in _epoch(config)]))
    assert all(f"remote text {number}" in text for number in range(3))


def test_a_batch_can_be_named_by_its_documents(mixed):
    (*_, batch) = _take(_loader(mixed), 4)
    lines = describe_batch(
        open_rows(mixed, split="train", sequence_length=L, seed=0), batch_size=B, batch=3
    ).splitlines()
    assert lines[0] == f"batch 3 of train, seed=0 (rows {3 * B} to {4 * B - 1}):"
    texts = {document.key: document.text.encode() for part in mixed.sources for document in part.documents()}
    for row, line in enumerate(lines[1:], start=0):
        label, _, stretches = line.partition("'): ")
        assert label.startswith(f"  row {row}: TextFiles(glob=")
        named = b"".join(_stretch(texts, stretch) for stretch in stretches.split(", "))
        assert named == bytes(batch.tokens[row][batch.weights[row] == 1].tolist())
    assert len(lines) == 1 + B


def _stretch(texts: dict[str, bytes], stretch: str) -> bytes:
    key, _, bounds = stretch.removesuffix("]").partition("[")
    begin, end = map(int, bounds.split(":"))
    return texts[key][begin:end]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"rows": [B]}, ("rows=[8]", 0, "batch_size=8 - 1")),
        ({"rows": []}, ("rows=[]", "one row")),
        ({"batch_size": 0}, ("batch_size=0", "one row")),
        ({"sequence_length": 0}, ("sequence_length=0", 1)),
        ({"seed": -1}, ("seed=-1", "negative")),
        ({"rows_consumed": -1}, ("rows_consumed=-1", "negative")),
        ({"num_epochs": 0}, ("num_epochs=0", 1)),
        ({"split": "test"}, ("split='test'", "'train'", "'validation'")),
    ],
    ids=["row 8", "no rows", "no batch", "no tokens", "seed", "rows consumed", "epochs", "split"],
)
def test_an_argument_out_of_range_is_refused_by_name(config, arguments, facts):
    with refused(ValueError, *facts):
        _loader(config, **arguments)
