"""Token stores: the tokens of a source, written once to a cache folder and memory-mapped from it.

A store is the folder <cache>/tokens/<key> of

    tokens.bin          every document's ids, with its beginning and end ids, uint16 or uint32
    document_ends.npy   where in tokens.bin each document ends
    keys.bin            the documents' keys, UTF-8        key_ends.npy    where in keys.bin each key ends
    key_hashes.npy      a 64-bit hash of each key, which decides between training and validation
    weights.npy         weights of the loss, only if not all are 1  weight_ends.npy   where in tokens.bin each ends
    meta.json           the token type, a digest of all tokens and keys, and every file's size and checksum

under `$JAXTRAIN_CACHE` or ~/.cache/jaxtrain. `key` is a hash of the source's fingerprint, which determines its text, of
the tokenizer's identity, and of the code of both classes. So changed text, an edited class or another tokenizer has
another store, and no store is updated in place. A store is built in a temporary folder and renamed when it is complete,
so processes may race, and may be killed, at any point. A store that does not match its meta.json is built again. The
split into training and validation is computed on reading and not stored.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.data import weights
from jaxtrain.data.cache import cache_folder
from jaxtrain.data.code import code_of
from jaxtrain.data.sources.base import Source
from jaxtrain.data.store_files import FILES, FORMAT, Progress, checksum, write
from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.data.weights import Weights
from jaxtrain.technique import Technique

_ABANDONED_SECONDS = 24 * 3600

_log = logging.getLogger(__name__)


class TokenStore(NamedTuple):
    """A tokenised source. Document i is tokens[starts[i] : starts[i] + lengths[i]], from beginning to end id."""

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    key_hashes: np.ndarray
    key_bytes: np.ndarray
    key_ends: np.ndarray
    digest: str  # of the keys, tokens and weights of all documents, the same on every machine
    written: float  # when, in seconds since 1970
    is_new: bool = False  # written by this call, and not found in the cache
    weights: Weights | None = None  # of the loss on each token; None: all are 1

    def key(self, document: int) -> str:
        begin = self.key_ends[document - 1] if document else 0
        return self.key_bytes[begin : self.key_ends[document]].tobytes().decode(errors="replace")


def open_store(
    source: Source, tokenizer: Tokenizer, *, progress: Progress | None = None, rebuild: bool = False
) -> TokenStore:
    """Return the store of a source. Tokenise the source first where the cache has no undamaged store.

    With `rebuild` it is tokenised in any case. `progress` is told how far that is.

    Raises:
      ValueError: the source has no text, or changes while it is read.
      OSError: the store cannot be written.
    """
    folder = cache_folder() / "tokens" / _key(source, tokenizer)
    is_new = False
    for _ in range(3):  # another process may replace a damaged store between our check and our use of it
        store = None if rebuild and not is_new else _read(folder)
        if store is not None:
            return store._replace(is_new=is_new)
        _build(source, tokenizer, folder, progress, replaced=rebuild)
        is_new = True
    raise OSError(f"{folder} cannot be written whole: it is damaged again each time it is built. Check the disk.")


def _key(source: Source, tokenizer: Tokenizer) -> str:
    codes = [*_codes(source), *_codes(tokenizer)]
    parts = [FORMAT, type(source).__qualname__, source.fingerprint(), tokenizer.identity(), *codes]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _codes(value: Any) -> Iterator[str]:
    """Yield the code of an object's class, and of those that it holds, such as the rows of a source of chats."""
    if isinstance(value, Technique):
        yield code_of(type(value))
        for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
            yield from _codes(getattr(value, field.name))


def _read(folder: Path) -> TokenStore | None:
    """Return the store, or None where it does not exist or does not match its meta.json."""
    try:
        return _opened(folder, json.loads((folder / "meta.json").read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as e:
        _log.warning("The token store %s is damaged (%s); tokenising again.", folder, e)
        return None


def _opened(folder: Path, meta: dict) -> TokenStore:
    if not set(FILES) <= set(meta["files"]) or any(
        checksum(folder / name) != written for name, written in meta["files"].items()
    ):
        raise ValueError("a file is not what was written")
    ends = np.load(folder / "document_ends.npy")
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    return TokenStore(
        tokens=_mapped(folder / "tokens.bin", np.dtype(meta["dtype"])),
        starts=starts,
        lengths=ends - starts,
        key_hashes=np.load(folder / "key_hashes.npy"),
        key_bytes=_mapped(folder / "keys.bin", np.dtype(np.uint8)),
        key_ends=np.load(folder / "key_ends.npy"),
        digest=meta["digest"],
        written=meta["written"],
        weights=weights.load(folder) if set(weights.FILES) <= set(meta["files"]) else None,
    )


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # a plain view: indexing np.memmap itself is slow


def _build(source: Source, tokenizer: Tokenizer, folder: Path, progress: Progress | None, *, replaced: bool) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    began = time.monotonic()
    _log.info("Tokenising %s, once, into %s", source, folder)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as building:
        whole = Path(building) / "store"
        whole.mkdir()
        try:
            count = write(source, tokenizer, whole, progress)
        except OSError as error:
            if error.filename is not None:
                raise
            # The error of a write, such as a full disk, does not name the file.
            raise OSError(f"{source} cannot be tokenised into {folder}: {error.strerror or error}") from error
        if _key(source, tokenizer) != folder.name:
            raise ValueError(f"{source} changed while it was read. Begin again when its files are complete.")
        _publish(whole, folder, old=Path(building) / "old", replaced=replaced)
    _log.info("%d tokens in %.1f s", count, time.monotonic() - began)


def _publish(whole: Path, folder: Path, *, old: Path, replaced: bool) -> None:
    """Rename a complete store to its place, unless another process has put an undamaged one there first.

    With `replaced` also an undamaged one goes. A process that has it open goes on reading it.
    """
    if folder.exists() and (replaced or _read(folder) is None):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, old)
    try:
        os.replace(whole, folder)
    except OSError:
        if _read(folder) is None:
            raise


def _remove_abandoned(parent: Path) -> None:
    """Delete the temporary folders of builds that were killed."""
    for building in itertools.islice(parent.glob(".building-*"), 100):
        with contextlib.suppress(FileNotFoundError):
            # The modification time of a folder does not change while its files grow.
            latest = max(path.stat().st_mtime for path in (building, *building.rglob("*")))
            if time.time() - latest > _ABANDONED_SECONDS:
                shutil.rmtree(building, ignore_errors=True)
