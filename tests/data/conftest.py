"""Small sources that the data tests share, and a cache of their own for each test."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from jaxtrain.data import TextFiles

_WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "omicron", "pi", "rho"]


def _words(count: int, *, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(_WORDS, count))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("JAXTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def many_files(tmp_path: Path) -> TextFiles:
    """Eighty files from 1 to 23 words: at sequence length 64 half are cut and half are packed together."""
    folder = tmp_path / "many"
    for number in range(80):
        file = folder / f"part{number % 3}" / f"{number:03d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_words(1 + number * number % 23, seed=number))
    return TextFiles(glob=f"{folder}/**/*.txt")


@pytest.fixture
def one_file(tmp_path: Path) -> TextFiles:
    (tmp_path / "one.txt").write_text(_words(2000, seed=0))
    return TextFiles(glob=str(tmp_path / "one.txt"))


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)
