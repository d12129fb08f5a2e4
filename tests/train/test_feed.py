"""How far a run has read belongs to the text it has read."""

import dataclasses

import pytest
import runs

from jaxtrain.mesh import MeshConfig
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
    document = tmp_path / "corpus" / "document0.txt"
    document.write_text(document.read_text())  # another time of writing, as on another machine
    again = {stream: 8 for stream in taken}
    feed = _feed(corpus, again)
    assert not feed.text_changed
    assert (next(feed).tokens == whole[1].tokens).all()


def test_edited_text_is_read_from_its_first_row_and_says_so(corpus, tmp_path):
    taken = {}
    next(_feed(corpus, taken))
    (tmp_path / "corpus" / "document0.txt").write_text("edited")
    feed = _feed(corpus, taken)
    assert feed.text_changed and sorted(taken.values()) == [0, 8]


def test_what_a_run_reads_stays_as_it_was_opened_although_its_files_change(corpus, tmp_path):
    """Batches, the names of their documents, and validation, which is read again at every evaluation."""
    seen = []

    def look(run, state):
        seen.append(run.evaluate(state.params, batches=1).weight)
        for path in (tmp_path / "corpus").iterdir():
            path.write_text("edited")
        assert "document" in run._work.feed.describe(ago=0)

    runs.train(runs.tiny_run(corpus, steps=2, save_every=2, hooks=(runs.Watch(look=look),)), tmp_path / "run")
    assert seen[0] == seen[1] > 100


def test_another_packing_is_another_stream_and_no_change_of_text(corpus):
    taken = {}
    next(_feed(corpus, taken))
    assert not _feed(dataclasses.replace(corpus, validation_fraction=0.2), taken).text_changed
