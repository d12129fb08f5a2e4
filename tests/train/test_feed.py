"""How far a run has read belongs to the text it has read."""

import dataclasses

import pytest
import runs
from messages import refused

from jaxtrain.data import ConcatenateAndSplit, Mixture, TextFiles, Weighted
from jaxtrain.mesh import MeshConfig
from jaxtrain.train import distributed
from jaxtrain.train.feed import Feed
from jaxtrain.train.phases import Phase

PHASE = Phase(steps=4, batch_size=8, sequence_length=runs.LENGTH)


def _feed(data, taken: dict) -> Feed:
    return Feed(data, PHASE, seed=0, mesh=MeshConfig().build(), taken=taken)


@pytest.fixture
def corpus(tmp_path):
    return runs.write_corpus(tmp_path / "corpus")


def test_the_same_text_goes_on_where_it_stopped_wherever_it_lies(corpus, tmp_path):
    taken = {}
    whole = [next(feed) for feed in [_feed(corpus, taken)] for _ in range(2)]
    moved = (tmp_path / "corpus").rename(tmp_path / "moved")
    document = moved / "document0.txt"
    document.write_text(document.read_text())  # another time of writing, as on another machine
    again = {stream: 8 for stream in taken}
    feed = _feed(dataclasses.replace(corpus, source=TextFiles(glob=f"{moved}/*.txt")), again)
    assert not feed.is_new and not feed.text_changed
    assert (next(feed).tokens == whole[1].tokens).all()


@pytest.mark.parametrize("edit", [lambda text: "edited", str.swapcase], ids=["other length", "equal length"])
def test_edited_text_is_read_from_its_first_row_and_says_so(edit, corpus, tmp_path):
    taken = {}
    next(_feed(corpus, taken))
    document = tmp_path / "corpus" / "document0.txt"
    document.write_text(edit(document.read_text()))
    feed = _feed(corpus, taken)
    assert feed.is_new and feed.text_changed and sorted(taken.values()) == [0, 8]


def test_what_a_run_reads_stays_as_it_was_opened_although_its_files_change(corpus, tmp_path):
    """Batches, the names of their documents, and validation, which is read again at every evaluation."""
    seen = []

    def look(run, state):
        seen.append(run.evaluate(state.model, batches=1)[""].weight)
        for path in (tmp_path / "corpus").iterdir():
            path.write_text("edited")
        assert "document" in run.phase.feed.describe(ago=0)

    runs.train(runs.tiny_run(corpus, steps=3, save_every=3, hooks=(runs.Watch(look=look),)), tmp_path / "run")
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2] > 100


@pytest.mark.parametrize(
    "change",
    [{"validation_fraction": 0.2}, {"packing": ConcatenateAndSplit()}, {"temperature": 2.0}],
    ids=lambda change: next(iter(change)),
)
def test_another_way_to_read_is_another_stream_and_no_change_of_text(change, corpus):
    taken = {}
    first = _feed(corpus, taken)
    next(first)
    assert not first.is_new
    if "temperature" in change:
        change = {"source": Mixture(sources=(Weighted(source=corpus.source),), **change)}
    feed = _feed(dataclasses.replace(corpus, **change), taken)
    assert feed.is_new and not feed.text_changed


def test_processes_that_read_different_text_are_refused(corpus, monkeypatch):
    monkeypatch.setattr(distributed, "of_first", lambda number: number ^ 1)
    with refused(ValueError, "16 tokens by bytes", varies={"<fingerprints>": "(?<=16 tokens by bytes).*(?=': give)"}):
        _feed(corpus, {})
