"""Data sets of Hugging Face: from a folder, and streamed from a Hub that fails half way."""

import json

import pytest
from messages import refused

from jaxtrain.data import HuggingFaceFolder, HuggingFaceHub
from jaxtrain.data.sources import spool
from jaxtrain.data.sources.spool import spooled

datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")

ROWS = [{"title": f"t{number}", "text": f"text {number}" if number != 3 else None} for number in range(7)]
REVISION = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(params=["saved", "saved with splits", "files"])
def folder(request, tmp_path) -> str:
    path = tmp_path / "a set"
    if request.param == "files":
        path.mkdir()
        (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        rows = datasets.Dataset.from_list(ROWS)
        kept = rows if request.param == "saved" else datasets.DatasetDict(train=rows, test=rows.select([0]))
        kept.save_to_disk(str(path))
    return str(path)


def test_a_folder_is_read_row_by_row_and_null_texts_are_passed_over(folder, tmp_path):
    source = HuggingFaceFolder(path=folder)
    found = list(source.documents())
    assert [(d.key, d.text) for d in found] == [(f"train:{n}", row["text"]) for n, row in enumerate(ROWS) if n != 3]
    joined = HuggingFaceFolder(path=folder, template="{{ title }}: {{ text or '' }}")
    assert [d.text for d in joined.documents()][2:4] == ["t2: text 2", "t3: "]
    assert [record.fields for record in source.records()] == ROWS
    assert source.fingerprint() != joined.fingerprint()
    assert not list((tmp_path / "hf").rglob("*.arrow")), "nothing is copied to another cache"


def test_a_split_that_is_not_there_is_refused(folder):
    with refused(ValueError, "nope", "train"):
        list(HuggingFaceFolder(path=folder, split="nope").documents())


def test_a_folder_that_is_not_there_is_refused_and_not_looked_for_on_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("nothing is downloaded"))
    with refused(ValueError, "path='nobody/nothing'", "HuggingFaceHub"):
        list(HuggingFaceFolder(path="nobody/nothing").documents())


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with refused(ValueError, f"path='{tmp_path}'", "jaxtrain[datasets]"):
        list(HuggingFaceFolder(path=str(tmp_path)).documents())


@pytest.mark.parametrize(
    ("options", "facts"),
    [({"revision": "main"}, ["revision='main'", 40]), ({"revision": REVISION, "rows": 0}, ["rows=0", 1])],
    ids=["branch", "rows"],
)
def test_what_would_not_be_the_same_tomorrow_is_refused(options, facts):
    with refused(ValueError, *facts):
        HuggingFaceHub(name="some/set", **options)


class Hub:
    """A Hub whose connection breaks after some rows, in place of the network."""

    def __init__(self, tmp_path, monkeypatch):
        (tmp_path / "hub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        self.breaks_after, self.opened, self.served = len(ROWS), 0, []
        load = datasets.load_dataset

        def load_dataset(name, subset, *, split, revision, streaming):
            assert (name, subset, split, revision, streaming) == ("some/set", "en", "train", REVISION, True)
            self.opened += 1
            rows = load("json", data_files=str(tmp_path / "hub.jsonl"), split="train", streaming=True)
            return rows.map(self._served)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def _served(self, row):
        if len(self.served) == self.breaks_after:
            self.breaks_after = len(ROWS) * 9
            raise ConnectionError("the network is gone")
        self.served.append(row["title"])
        return row


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    monkeypatch.setattr(spool, "ROWS_A_FILE", 2)
    return Hub(tmp_path, monkeypatch)


def test_a_stream_goes_on_behind_the_rows_that_are_kept_and_then_needs_no_network(hub):
    source = HuggingFaceHub(name="some/set", subset="en", revision=REVISION)
    hub.breaks_after = 5
    with refused(ValueError, "name='some/set'", "after 4 rows", "the network is gone", "goes on"):
        list(source.documents())
    before = len(hub.served)
    expected = [(f"train:{n}", row["text"]) for n, row in enumerate(ROWS) if n != 3]
    assert [(d.key, d.text) for d in source.documents()] == expected
    assert hub.served[before:] == ["t4", "t5", "t6"] and hub.opened == 2
    assert [(d.key, d.text) for d in source.documents()] == expected and hub.opened == 2


def test_the_first_rows_of_a_stream_are_a_source_of_their_own_that_more_rows_go_on_from(hub):
    few, more = (HuggingFaceHub(name="some/set", subset="en", revision=REVISION, rows=rows) for rows in (3, 6))
    assert [d.text for d in few.documents()] == ["text 0", "text 1", "text 2"]
    assert few.expected_documents() == 3 and few.fingerprint() != more.fingerprint()
    assert [d.key for d in more.documents()] == [f"train:{n}" for n in (0, 1, 2, 4, 5)]
    assert [d.key for d in few.documents()] == ["train:0", "train:1", "train:2"]
    assert hub.served.count("t0") == 1


class Counting:
    """A stream without any library."""

    def __init__(self, count: int):
        self.count, self.next = count, 0

    def __iter__(self):
        while self.next < self.count:
            self.next += 1
            yield {"n": self.next - 1}

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state_dict):
        self.next = state_dict["next"]


@pytest.mark.parametrize("read", [0, 1, 2, 3, 4, 5])
def test_a_reader_who_stops_anywhere_misses_no_row_and_reads_none_twice(read, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "ROWS_A_FILE", 2)
    stopped = spooled(tmp_path, lambda: Counting(5), limit=None)
    assert [next(stopped)["n"] for _ in range(read)] == list(range(read))
    stopped.close()
    assert [row["n"] for row in spooled(tmp_path, lambda: Counting(5), limit=None)] == list(range(5))
