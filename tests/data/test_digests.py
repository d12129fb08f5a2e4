"""What a source is known by determines its text, and a file is not read again while it stays as it is."""

import errno
import os
import time
from pathlib import Path

import pytest
from messages import refused

from jaxtrain.data import JsonLines, StandardLibrary, TextFiles
from jaxtrain.data.sources import digests


@pytest.fixture
def later(monkeypatch):
    """Digests as if files that are written now were written ten seconds ago."""
    now = time.time_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: now() + 10**10)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The files that are read, one after another."""
    names, digest = [], digests.digest
    monkeypatch.setattr(digests, "digest", lambda stream: names.append(Path(stream.name).name) or digest(stream))
    return names


def _write(path: Path, content: str) -> None:
    """Write in place, without another size or time of writing than before."""
    with path.open("r+" if path.exists() else "w") as stream:
        stream.write(content)
    os.utime(path, (1577836800,) * 2)


def test_files_of_the_same_name_size_and_time_are_told_apart(tmp_path):
    for folder in "ABC":
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "part-000.txt", ("x" if folder == "C" else folder) * 4000)
    a, b, _ = (TextFiles(glob=f"{tmp_path}/{folder}/*.txt").fingerprint() for folder in "ABC")
    _write(tmp_path / "C" / "part-000.txt", "A" * 4000)
    assert a != b and TextFiles(glob=f"{tmp_path}/C/*.txt").fingerprint() == a


@pytest.mark.parametrize("kind", ["just written", "settled"])
def test_an_edit_in_place_that_keeps_size_and_time_is_seen(kind, tmp_path, request):
    if kind == "settled":
        request.getfixturevalue("later")
    source = TextFiles(glob=f"{tmp_path}/*.txt")
    seen = set()
    for letter in "abcd":
        time.sleep(0.02)  # the change of a settled file is seconds away from its edit; here it is five ticks
        _write(tmp_path / "a.txt", letter * 100)
        seen.add(source.fingerprint())
    assert len(seen) == 4


def test_a_settled_file_is_read_once_and_another_one_by_itself(tmp_path, later, read):
    source = TextFiles(glob=f"{tmp_path}/*.txt")
    _write(tmp_path / "a.txt", "a")
    first = source.fingerprint()
    assert source.fingerprint() == first and read == ["a.txt"]
    _write(tmp_path / "b.txt", "b")
    both = source.fingerprint()
    assert source.fingerprint() == both != first and read == ["a.txt", "b.txt"]
    (tmp_path / "c.txt").symlink_to("a.txt")
    source.fingerprint()
    assert read == ["a.txt", "b.txt", "c.txt"]


def test_a_file_that_changed_within_the_last_seconds_is_read_again(tmp_path, read):
    source = TextFiles(glob=f"{tmp_path}/*.txt")
    _write(tmp_path / "a.txt", "a")
    assert source.fingerprint() == source.fingerprint() and read == ["a.txt", "a.txt"]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, later, monkeypatch):
    source, digest = TextFiles(glob=f"{tmp_path}/*.txt"), digests.digest
    _write(tmp_path / "a.txt", "a")

    def late_edit(stream):
        found = digest(stream)
        time.sleep(0.02)
        _write(tmp_path / "a.txt", "b")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(digests, "digest", late_edit)
        torn = source.fingerprint()
    assert source.fingerprint() != torn


def test_what_a_damaged_memory_says_is_read_anew(tmp_path, cache, later, read):
    source = TextFiles(glob=f"{tmp_path}/*.txt")
    _write(tmp_path / "a.txt", "a")
    first = source.fingerprint()
    (memory,) = (cache / "digests").iterdir()
    for damage in (b"", memory.read_bytes()[:-1], b"[]", b'{"a": 1}', b"\xff"):
        memory.write_bytes(damage)
        assert source.fingerprint() == first
    assert len(read) == 6 and len(list((cache / "digests").iterdir())) == 1


def test_digests_are_found_where_none_can_be_kept(tmp_path, cache, later):
    cache.write_text("no folder")
    _write(tmp_path / "a.txt", "a")
    source = TextFiles(glob=f"{tmp_path}/*.txt")
    assert source.fingerprint() == source.fingerprint()


def test_the_standard_library_is_read_once(later, read):
    first = StandardLibrary().fingerprint()
    files = len(read)
    assert files > 100 and StandardLibrary().fingerprint() == first and len(read) == files


def test_a_disk_that_fails_is_told_with_the_file(tmp_path, monkeypatch):
    def fail(stream):
        raise OSError(errno.EIO, "Input/output error")

    _write(tmp_path / "a.txt", "a")
    monkeypatch.setattr(digests, "digest", fail)
    with refused(ValueError, tmp_path / "a.txt", "Input/output error"):
        TextFiles(glob=f"{tmp_path}/*.txt").fingerprint()


def test_a_remote_file_without_a_checksum_is_read_and_told_apart_at_equal_length(memory):
    fingerprints = set()
    for content in (b"aaaa", b"bbbb"):
        memory.pipe("/texts/a.txt", content)
        fingerprints.add(TextFiles(glob="memory://texts/*.txt").fingerprint())
    assert len(fingerprints) == 2


def test_an_etag_stands_for_the_bytes_at_its_url_alone_and_a_weak_one_for_nothing(memory, monkeypatch):
    info, glob = type(memory).info, type(memory).glob

    def with_etag(tag):
        monkeypatch.setattr(type(memory), "info", lambda self, path, **rest: info(self, path, **rest) | {"ETag": tag})
        monkeypatch.setattr(
            type(memory), "glob", lambda self, pattern, **rest: {p: self.info(p) for p in glob(self, pattern)}
        )

    for folder in "ab":
        memory.pipe(f"/{folder}/x.jsonl", b'{"text": "x"}')
    a, b = (JsonLines(glob=f"memory://{folder}/*.jsonl") for folder in "ab")
    assert a.fingerprint() == b.fingerprint()  # read, they are the same
    with_etag('"5e0b-4d2"')
    strong = a.fingerprint()
    assert strong == a.fingerprint() != b.fingerprint()
    with_etag('"5e0b-4d3"')
    assert a.fingerprint() != strong
    with_etag('W/"5e0b"')
    assert a.fingerprint() == b.fingerprint()
