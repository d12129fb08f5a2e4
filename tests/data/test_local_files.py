"""Which files a glob means: links are files, hidden names are left out, and a path that exists is itself."""

import glob
import os
from pathlib import Path

import pytest
from messages import refused

from jaxtrain.data import TextFiles
from jaxtrain.data.sources.local_files import matching


def _texts(pattern: object) -> dict[str, str]:
    return {document.key: document.text for document in TextFiles(glob=str(pattern)).documents()}


def _write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {path.name}")


@pytest.mark.parametrize("pattern", ["*.txt", "**", "**/*.txt", "[abc].txt"])
def test_one_real_file_and_two_links_are_three_documents(pattern, tmp_path):
    _write(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("a.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "b.txt")
    assert _texts(tmp_path / pattern) == dict.fromkeys(["a.txt", "b.txt", "c.txt"], "text of a.txt")


def test_a_folder_of_links_is_read_as_the_hugging_face_cache_lays_it_out(tmp_path):
    blob, snapshot = tmp_path / "blobs" / "0123abcd", tmp_path / "snapshots" / "main" / "train" / "a.txt"
    _write(blob)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to("../../../blobs/0123abcd")
    (tmp_path / "data").symlink_to("snapshots/main")
    assert _texts(tmp_path / "data" / "**" / "*.txt") == {"train/a.txt": "text of 0123abcd"}
    assert _texts(tmp_path / "*" / "train" / "*.txt") == {"data/train/a.txt": "text of 0123abcd"}


def test_links_that_lead_back_are_followed_once_around(tmp_path):
    _write(tmp_path / "a" / "a.txt", tmp_path / "b" / "b.txt")
    for folder, link, to in [("a", "self", "."), ("a", "up", ".."), ("a", "to_b", "../b"), ("b", "to_a", "../a")]:
        (tmp_path / folder / link).symlink_to(to)
    found = set(_texts(tmp_path / "a" / "**" / "*.txt"))
    assert {"a.txt", "to_b/b.txt", "up/b/b.txt"} <= found
    assert all(len(Path(key).parts) <= 4 for key in found)


def test_wildcards_leave_hidden_names_out_unless_the_pattern_has_them(tmp_path):
    _write(tmp_path / "a.txt", tmp_path / ".hidden.txt", tmp_path / ".git" / "deep" / "x.txt", tmp_path / "s" / "y.txt")
    assert set(_texts(tmp_path / "**")) == {"a.txt", "s/y.txt"}
    assert set(_texts(tmp_path / "*.txt")) == {"a.txt"}
    assert set(_texts(tmp_path / "*" / "*.txt")) == {"s/y.txt"}
    assert set(_texts(tmp_path / ".*.txt")) == {".hidden.txt"}
    assert set(_texts(tmp_path / "**" / ".git" / "**")) == {".git/deep/x.txt"}
    assert set(_texts(tmp_path / ".git" / "**" / "*.txt")) == {"deep/x.txt"}


def test_a_link_to_nothing_is_refused_where_it_matches(tmp_path):
    _write(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    (tmp_path / "c.bak").symlink_to("gone.bak")
    with refused(FileNotFoundError, tmp_path / "b.txt"):
        _texts(tmp_path / "*.txt")
    assert set(_texts(tmp_path / "**" / "a*.txt")) == {"a.txt"}


def test_what_is_neither_file_nor_folder_is_no_match(tmp_path):
    _write(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.txt")
    assert set(_texts(tmp_path / "*.txt")) == {"a.txt"}
    with pytest.raises(ValueError, match="matches no file"):
        _texts(tmp_path / "b.txt")


NAMES = [
    "a[1]",
    "lr[3e-4]",
    "a]b[",
    "a*",
    "**",
    "a?b",
    "a#b",
    "a%20b",
    "a b",
    "a\\b",
    "a::b",
    "имя",
    "文",
    "~",
    "{a,b}",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_folder_and_any_file_name_is_itself_and_its_key_begins_below_the_folder(name, tmp_path):
    folder, file = tmp_path / name, f"{name}.txt"
    _write(folder / file, tmp_path / "a1" / file, tmp_path / "ab" / "ab.txt")
    for pattern in (file, "*.txt", "**"):
        assert _texts(folder / pattern) == {file: f"text of {file}"}


def test_a_relative_path_and_one_from_home_are_found(tmp_path, monkeypatch):
    _write(tmp_path / "a[1].txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _texts("a[1].txt") == _texts("~/a*.txt") == _texts("./*.txt") == {"a[1].txt": "text of a[1].txt"}


def test_a_path_that_exists_is_itself_although_its_wildcards_match_others(tmp_path):
    _write(tmp_path / "a?.txt", tmp_path / "ab.txt")
    assert set(_texts(tmp_path / "a?.txt")) == {"a?.txt"}
    assert set(_texts(tmp_path / "a[?].txt")) == {"a?.txt"}  # an escaped wildcard, as glob.escape writes it
    assert set(_texts(tmp_path / "a*.txt")) == {"a?.txt", "ab.txt"}


@pytest.mark.parametrize(
    "pattern", ["", "/", "/*/*.nowhere", "/nowhere/*.txt", f"{__file__}/*.txt", "no\0file", "x" * 300]
)
def test_a_pattern_that_no_file_can_match_is_refused(pattern):
    with pytest.raises((ValueError, OSError), match=r"matches no file|cannot be listed|File name too long"):
        _texts(pattern)


PATTERNS = [
    "*",
    "**",
    "**/*.txt",
    "*/*.txt",
    "[ab]*/**/c?.txt",
    "[!a]/**",
    "a/**/*",
    "**/b/**/*.md",
    "**/**",
    "*.m*",
    "b",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_without_links_that_is_what_the_standard_library_finds(pattern, tmp_path):
    names = [
        "a.txt",
        "b.md",
        "a/c1.txt",
        "a/b/c2.txt",
        "a/b/d.md",
        "b/a/b/c3.txt",
        "b/.x/c4.txt",
        ".y.txt",
        "ab/cc.txt",
    ]
    _write(*(tmp_path / name for name in names))
    expected = filter(os.path.isfile, glob.glob(f"{tmp_path}/{pattern}", recursive=True))
    assert matching(f"{tmp_path}/{pattern}").paths == sorted(set(expected))


def test_urls_leave_hidden_names_out_and_take_an_existing_path_as_it_is(memory):
    for name in ("a[1].txt", "a1.txt", ".hidden.txt", ".git/x.txt"):
        memory.pipe(f"/texts/{name}", name.encode())
    assert _texts("memory://texts/**") == {"a1.txt": "a1.txt", "a[1].txt": "a[1].txt"}
    assert _texts("memory://texts/a[1].txt") == {"a[1].txt": "a[1].txt"}
    assert _texts("memory://texts/.git/*") == {"x.txt": ".git/x.txt"}
