"""Rows of a stream, kept in files as they come, so that a reader who was stopped goes on where the files end.

A folder has the files 0.jsonl.gz, 1.jsonl.gz, ... and state.json, which says how many of them are whole and where the
stream goes on behind them. Each file is renamed to its place, and state.json after it. Several processes may fill one
folder: they write the same files.
"""

import gzip
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

ROWS_A_FILE = 10_000

type Row = dict[str, Any]


class Stream(Protocol):
    """A stream of rows that can say where it is, and go on there."""

    def __iter__(self) -> Iterator[Row]: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state_dict: dict) -> None: ...


class _State(NamedTuple):
    files: int = 0
    rows: int = 0
    stream: dict | None = None  # where it goes on; None at its beginning
    is_whole: bool = False


def spooled(folder: Path, open_stream: Callable[[], Stream], *, limit: int | None) -> Iterator[Row]:
    """Yield the first `limit` rows of a stream, or all: those in the folder, then those that come."""
    state = _load(folder)
    kept = itertools.chain.from_iterable(_read(folder / f"{number}.jsonl.gz") for number in range(state.files))
    yield from itertools.islice(kept, limit)
    if state.is_whole or (limit is not None and state.rows >= limit):
        return
    stream = open_stream()
    if state.stream is not None:
        stream.load_state_dict(state.stream)
    rows = iter(stream)
    while not state.is_whole and state.rows != limit:
        wanted = ROWS_A_FILE if limit is None else min(ROWS_A_FILE, limit - state.rows)
        lines = [json.dumps(row) for row in itertools.islice(rows, wanted)]
        state = _State(state.files + 1, state.rows + len(lines), stream.state_dict(), len(lines) < wanted)
        _write(folder / f"{state.files - 1}.jsonl.gz", gzip.compress("\n".join(lines).encode(), compresslevel=3))
        _write(folder / "state.json", json.dumps(state).encode())
        yield from map(json.loads, lines)


def _load(folder: Path) -> _State:
    try:
        return _State(*json.loads((folder / "state.json").read_bytes()))
    except FileNotFoundError:
        return _State()


def _read(file: Path) -> Iterator[Row]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        whole = Path(folder) / file.name
        whole.write_bytes(content)
        os.replace(whole, file)
