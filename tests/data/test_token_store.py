"""The token store: what it holds, when it is made anew, and that no one ever sees half of one."""

import dataclasses
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from full_disk import files_no_larger_than
from messages import refused
from patience import PATIENCE_SECONDS

from jaxtrain.data import ByteTokenizer, Document, HuggingFaceTokenizer, Source, StandardLibrary, TextFiles
from jaxtrain.data.cache import cache_folder
from jaxtrain.data.split import documents_of
from jaxtrain.data.store import TokenStore, open_store


class Counted(Source):
    """Documents in memory that count how often they are read, and may fail or wait half way."""

    def __init__(self, texts: dict[str, str], *, half_way=lambda: None):
        self.texts, self.half_way, self.reads = texts, half_way, 0

    def documents(self) -> Iterator[Document]:
        self.reads += 1
        for number, (key, text) in enumerate(self.texts.items()):
            if number == len(self.texts) // 2:
                self.half_way()
            yield Document(key, text)

    def fingerprint(self) -> str:
        return repr(self.texts)


def _documents(store: TokenStore) -> dict[str, str]:
    decode = ByteTokenizer().decode
    spans = zip(store.starts, store.starts + store.lengths, strict=True)
    return {store.key(i): decode(store.tokens[begin:end]) for i, (begin, end) in enumerate(spans)}


@pytest.fixture
def source() -> Counted:
    return Counted({f"ключ {number}": f"text {number} é" for number in range(50)})


def _folder(cache: Path) -> Path:
    (folder,) = (cache / "tokens").iterdir()
    return folder


def test_a_store_holds_every_document_under_its_key_with_its_end(source):
    store = open_store(source, ByteTokenizer())
    assert _documents(store) == source.texts
    assert (store.tokens[store.starts + store.lengths - 1] == 256).all()
    assert store.tokens.dtype == np.uint16


def test_a_source_is_tokenised_once(source):
    first, second = open_store(source, ByteTokenizer()), open_store(source, ByteTokenizer())
    assert source.reads == 1
    np.testing.assert_array_equal(first.tokens, second.tokens)


def test_a_changed_source_or_tokenizer_is_another_store(source, cache):
    @dataclasses.dataclass(frozen=True)
    class Doubled(ByteTokenizer):
        def identity(self) -> str:
            return "doubled"

    open_store(source, ByteTokenizer())
    open_store(source, Doubled())
    open_store(Counted(source.texts | {"more": "text"}), ByteTokenizer())
    assert len(list((cache / "tokens").iterdir())) == 3


def test_equal_names_lengths_and_times_are_no_reason_to_take_one_text_for_another(tmp_path):
    digests = {}
    for folder in "ABA":  # the last is an edit in place of the first, back and forth
        path = tmp_path / folder / "part-000.txt"
        path.parent.mkdir(exist_ok=True)
        for letter in (folder.lower(), folder):
            path.write_text(letter * 4000)
            os.utime(path, (1577836800,) * 2)
            store = open_store(TextFiles(glob=f"{path.parent}/*.txt"), ByteTokenizer())
            assert _documents(store) == {"part-000.txt": letter * 4000}
            assert digests.setdefault(letter, store.digest) == store.digest
    assert len(set(digests.values())) == 4


def test_a_digest_tells_texts_names_and_bounds_apart_and_is_the_same_in_another_cache(monkeypatch, tmp_path):
    texts = [{"a": "xy", "b": "z"}, {"a": "xz", "b": "y"}, {"a": "xy", "c": "z"}, {"a": "x", "b": "yz"}, {"a": "xy"}]
    digests = [open_store(Counted(text), ByteTokenizer()).digest for text in texts]
    assert len(set(digests)) == len(texts)
    monkeypatch.setenv("JAXTRAIN_CACHE", str(tmp_path / "another"))
    assert [open_store(Counted(text), ByteTokenizer()).digest for text in texts] == digests


def test_a_source_that_changes_while_it_is_read_is_refused_and_leaves_no_store(source, cache):
    source.half_way = lambda: source.texts.update(dict.fromkeys(source.texts, "edited"))
    with refused(ValueError, "changed while it was read", "Begin again", varies={"<source>": r"^<.*>"}):
        open_store(source, ByteTokenizer())
    assert list((cache / "tokens").iterdir()) == []


def test_a_vocabulary_beyond_16_bits_is_stored_in_32(source):
    class Wide(ByteTokenizer):
        vocab_size = 2**16 + 1

        def identity(self) -> str:
            return "wide"

        def encode_batch(self, texts):
            return [ids + 2**16 - 200 for ids in super().encode_batch(texts)]

    store = open_store(source, Wide())
    assert store.tokens.dtype == np.uint32 and store.tokens.max() > 2**16 - 200 + 100


def test_the_cache_is_where_the_environment_says_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXTRAIN_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("JAXTRAIN_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "jaxtrain"


FILES = ["tokens.bin", "document_ends.npy", "keys.bin", "key_ends.npy", "key_hashes.npy", "meta.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_a_damaged_store_is_built_anew(source, cache, name, damage):
    open_store(source, ByteTokenizer())
    file = _folder(cache) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"[" + content[1:])
    assert _documents(open_store(source, ByteTokenizer())) == source.texts
    assert source.reads == 2
    assert sorted(path.name for path in _folder(cache).iterdir()) == sorted(FILES)


def test_a_build_that_fails_half_way_leaves_nothing(cache):
    def fail():
        raise OSError("No space left on device")

    texts = {str(number): "text" for number in range(3000)}
    with pytest.raises(OSError, match="No space left"):
        open_store(Counted(texts, half_way=fail), ByteTokenizer())
    assert list((cache / "tokens").iterdir()) == []
    assert _documents(open_store(Counted(texts), ByteTokenizer())) == texts


def test_what_a_killed_build_left_is_not_read_and_goes_away_after_a_day(source, cache):
    recent, old, at_work = (cache / "tokens" / f".building-{name}" for name in ("recent", "old", "at-work"))
    for folder in (recent, old, at_work):
        (folder / "store").mkdir(parents=True)
        (folder / "store" / "tokens.bin").write_bytes(b"half")
    two_days_ago = (time.time() - 2 * 86400,) * 2
    for path in (old, old / "store", old / "store" / "tokens.bin", at_work, at_work / "store"):
        os.utime(path, two_days_ago)
    assert _documents(open_store(source, ByteTokenizer())) == source.texts
    assert recent.exists() and at_work.exists() and not old.exists()


def test_processes_that_build_at_once_all_get_the_whole_store(source, cache):
    together = threading.Barrier(4, timeout=PATIENCE_SECONDS)
    stores = []

    def build():
        stores.append(open_store(Counted(source.texts, half_way=together.wait), ByteTokenizer()))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [_documents(store) for store in stores] == [source.texts] * 4
    assert len(list((cache / "tokens").iterdir())) == 1


def test_a_full_disk_is_told_with_source_and_store(tmp_path, cache):
    (tmp_path / "a.txt").write_text("a" * 1000)
    source = TextFiles(glob=str(tmp_path / "*.txt"))
    facts = (f"glob='{tmp_path}/*.txt'", cache / "tokens", "File too large")
    with files_no_larger_than(100), refused(OSError, *facts, varies={"<digest>": r"(?<=/tokens/)\w+"}):
        open_store(source, ByteTokenizer())
    assert list((cache / "tokens").iterdir()) == []


def test_a_source_without_text_is_refused(cache):
    with pytest.raises(ValueError, match="has no text: every document is empty"):
        open_store(Counted({"a": "", "b": ""}), ByteTokenizer())


def _keys(store: TokenStore, split: str, fraction: float) -> set[str]:
    return {store.key(i) for i in documents_of(store, split=split, validation_fraction=fraction).numbers}


def test_the_standard_library_is_split_by_file():
    store = open_store(StandardLibrary(), ByteTokenizer())
    train, validation = (_keys(store, split, 0.05) for split in ("train", "validation"))
    assert train.isdisjoint(validation) and len(train | validation) == len(store.starts)
    held_out = documents_of(store, split="validation", validation_fraction=0.05)
    np.testing.assert_array_equal(held_out.lengths, store.lengths[held_out.numbers])
    assert 0.0125 < held_out.lengths.sum() / len(store.tokens) < 0.2


def test_a_document_stays_in_its_split_whatever_comes_before_or_after_it():
    texts = {f"{number}": "some text" for number in range(400)}
    few = open_store(Counted(texts), ByteTokenizer())
    more = open_store(
        Counted({f"new {number}": "text" for number in range(100)} | dict(reversed(texts.items()))), ByteTokenizer()
    )
    assert _keys(few, "validation", 0.1) == _keys(more, "validation", 0.1) & set(texts)
    assert 20 <= len(_keys(few, "validation", 0.1)) <= 60


@pytest.mark.parametrize("texts", [{"only": "x" * 1000}, {"long": "x" * 1000, "longer": "y" * 3000}])
def test_few_documents_are_cut_near_their_ends(texts):
    store = open_store(Counted(texts), ByteTokenizer())
    train, held_out = (documents_of(store, split=s, validation_fraction=0.1) for s in ("train", "validation"))
    np.testing.assert_array_equal(train.starts, store.starts)
    np.testing.assert_array_equal(train.starts + train.lengths, held_out.starts)
    np.testing.assert_array_equal(held_out.starts + held_out.lengths, store.starts + store.lengths)
    np.testing.assert_array_equal(held_out.lengths, store.lengths // 10)


def test_a_document_too_short_to_hold_out_a_pair_is_all_for_training():
    store = open_store(Counted({"short": "x" * 15, "long": "y" * 2000}), ByteTokenizer())
    train, held_out = (documents_of(store, split=s, validation_fraction=0.1) for s in ("train", "validation"))
    assert train.lengths.tolist() == [16, 1801]
    assert held_out.numbers.tolist() == [1]


def test_nothing_is_held_out_when_nothing_is_asked_for():
    store = open_store(Counted({"only": "x" * 100}), ByteTokenizer())
    np.testing.assert_array_equal(documents_of(store, split="train", validation_fraction=0.0).lengths, store.lengths)
    with refused(ValueError, "validation_fraction=0.0", "split='validation'"):
        documents_of(store, split="validation", validation_fraction=0.0)


def test_a_text_too_short_to_split_is_refused_with_its_size(tmp_path):
    (tmp_path / "a.txt").write_text("tiny")
    store = open_store(TextFiles(glob=f"{tmp_path}/a.txt"), ByteTokenizer())
    with refused(ValueError, "validation_fraction=0.05", "split='validation'", "5 tokens", "1 documents"):
        documents_of(store, split="validation", validation_fraction=0.05)


def test_a_tokenizer_that_cannot_be_loaded_leaves_no_store(source, cache, tmp_path):
    with pytest.raises((ValueError, OSError)):
        open_store(source, HuggingFaceTokenizer(path=str(tmp_path / "missing.json")))
    assert not cache.exists()
