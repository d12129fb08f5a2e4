"""Token stores: the tokens of a source, written once to a cache folder and memory-mapped from it.

A store is the folder <cache>/tokens/<key> of

    tokens.bin          every document's ids, with its beginning and end ids, uint16 or uint32
    document_ends.npy   where in tokens.bin each document ends
    keys.bin            the documents' keys, UTF-8        key_ends.npy    where in keys.bin each key ends
    key_hashes.npy      a 64-bit hash of each key, which decides between training and validation
    meta.json           the token type, a digest of all tokens and keys, and every file's size and checksum

under `$JAXTRAIN_CACHE` or ~/.cache/jaxtrain. `key` is a hash of the source's fingerprint, which determines its text,
and of the tokenizer's identity. So changed text or another tokenizer has another store, and no store is updated in
place. A store is built in a temporary folder and renamed when it is complete, so processes may race, and may be killed,
at any point. A store that does not match its meta.json is built again. The split into training and validation is
computed on reading and not stored.
"""

import array
import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtrain.data.cache import cache_folder
from jaxtrain.data.sources.base import Document, Source
from jaxtrain.data.tokenizers.base import Tokenizer

_FORMAT = 2
_BATCH_CHARACTERS = 2**22
_BATCH_DOCUMENTS = 1024
_CHECKED_BYTES = 2**26  # of each file; a checksum of all bytes of a large store would delay every start by a full read
_ABANDONED_SECONDS = 24 * 3600
_FILES = ("tokens.bin", "document_ends.npy", "keys.bin", "key_ends.npy", "key_hashes.npy")

_log = logging.getLogger(__name__)


class TokenStore(NamedTuple):
    """A tokenised source. Document i is tokens[starts[i] : starts[i] + lengths[i]], from beginning to end id."""

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    key_hashes: np.ndarray
    key_bytes: np.ndarray
    key_ends: np.ndarray
    digest: str  # of the keys and tokens of all documents, the same on every machine

    def key(self, document: int) -> str:
        begin = self.key_ends[document - 1] if document else 0
        return self.key_bytes[begin : self.key_ends[document]].tobytes().decode(errors="replace")


def open_store(source: Source, tokenizer: Tokenizer) -> TokenStore:
    """Return the store of a source. Tokenise the source first where the cache has no undamaged store.

    Raises:
      ValueError: the source has no text, or changes while it is read.
      OSError: the store cannot be written.
    """
    folder = cache_folder() / "tokens" / _key(source, tokenizer)
    for _ in range(3):  # another process may replace a damaged store between our check and our use of it
        store = _read(folder)
        if store is not None:
            return store
        _build(source, tokenizer, folder)
    raise OSError(f"{folder} cannot be written whole: it is damaged again each time it is built. Check the disk.")


def _key(source: Source, tokenizer: Tokenizer) -> str:
    parts = [_FORMAT, type(source).__qualname__, source.fingerprint(), tokenizer.identity()]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


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
    if any(checksum(folder / name) != meta["files"][name] for name in _FILES):
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
    )


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # a plain view: indexing np.memmap itself is slow


def checksum(path: Path) -> list[int]:
    """Return the size of a file and the CRC-32 of its beginning."""
    with path.open("rb") as stream:
        return [path.stat().st_size, zlib.crc32(stream.read(_CHECKED_BYTES))]


def _build(source: Source, tokenizer: Tokenizer, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    began = time.monotonic()
    _log.info("Tokenising %s, once, into %s", source, folder)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as building:
        whole = Path(building) / "store"
        whole.mkdir()
        try:
            count = _write(source, tokenizer, whole)
        except OSError as error:
            if error.filename is not None:
                raise
            # The error of a write, such as a full disk, does not name the file.
            raise OSError(f"{source} cannot be tokenised into {folder}: {error.strerror or error}") from error
        if _key(source, tokenizer) != folder.name:
            raise ValueError(f"{source} changed while it was read. Begin again when its files are complete.")
        _publish(whole, folder, damaged=Path(building) / "damaged")
    _log.info("%d tokens in %.1f s", count, time.monotonic() - began)


def _write(source: Source, tokenizer: Tokenizer, folder: Path) -> int:
    """Write the files of a store, meta.json last, and return the number of tokens."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    lengths, key_lengths, hashes = array.array("q"), array.array("q"), array.array("Q")
    digest = hashlib.blake2b(digest_size=16)
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "keys.bin").open("wb") as keys:
        for batch in _batches(source.documents()):
            encoded = tokenizer.encode_documents([document.text for document in batch])
            for document, ids in zip(batch, encoded, strict=True):
                key = document.key.encode(errors="replace")
                stored = ids.astype(dtype)
                tokens.write(stored)
                digest.update(stored)
                keys.write(key)
                lengths.append(len(ids))
                key_lengths.append(len(key))
                hashes.append(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))
    if not lengths:
        raise ValueError(f"{source=} has no text: every document is empty. Name another one.")
    np.save(folder / "document_ends.npy", np.cumsum(np.array(lengths, np.int64)))
    np.save(folder / "key_ends.npy", np.cumsum(np.array(key_lengths, np.int64)))
    np.save(folder / "key_hashes.npy", np.array(hashes, np.uint64))
    digest.update(lengths)
    digest.update(hashes)
    meta = {
        "format": _FORMAT,
        "dtype": dtype.name,
        "digest": digest.hexdigest(),
        "files": {name: checksum(folder / name) for name in _FILES},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return sum(lengths)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield groups of non-empty documents, which a tokenizer encodes in parallel, in bounded memory."""
    batch, characters = [], 0
    for document in documents:
        if document.text:
            batch.append(document)
            characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _publish(whole: Path, folder: Path, *, damaged: Path) -> None:
    """Rename a complete store to its place, unless another process has put an undamaged one there first."""
    if folder.exists() and _read(folder) is None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, damaged)
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
