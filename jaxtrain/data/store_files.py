"""The files of a token store, written from the documents of a source."""

import array
import hashlib
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxtrain.data import weights
from jaxtrain.data.sources.base import Source
from jaxtrain.data.tokenizers.base import Tokenizer

FORMAT = 3
FILES = ("tokens.bin", "document_ends.npy", "keys.bin", "key_ends.npy", "key_hashes.npy")
Progress = Callable[[int, int], None]  # is told the documents and tokens written so far
_SECONDS_A_REPORT = 0.2
_CHECKED_BYTES = 2**26  # of each file; a checksum of all bytes of a large store would delay every start by a full read


def write(source: Source, tokenizer: Tokenizer, folder: Path, progress: Progress | None = None) -> int:
    """Write the files of a store, meta.json last, and return the number of tokens."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    lengths, key_lengths, hashes = array.array("q"), array.array("q"), array.array("Q")
    written, due = 0, time.monotonic() + _SECONDS_A_REPORT
    stretches, digest = weights.Stretches(), hashlib.blake2b(digest_size=16)
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "keys.bin").open("wb") as keys:
        for document, parts in source.tokenised(tokenizer):
            key = document.key.encode(errors="replace")
            stored = np.concatenate(parts).astype(dtype)
            tokens.write(stored)
            digest.update(stored)
            keys.write(key)
            lengths.append(len(stored))
            key_lengths.append(len(key))
            hashes.append(key_hash(key))
            stretches.add(document, map(len, parts))
            written += len(stored)
            if progress and time.monotonic() >= due:
                due = time.monotonic() + _SECONDS_A_REPORT
                progress(len(lengths), written)
    if progress:
        progress(len(lengths), written)
    if not lengths:
        raise ValueError(f"{source=} has no text: every document is empty. Name another one.")
    if stretches.are_all_zero:
        raise ValueError(f"{source=} gives every token the weight 0. Give those to be learned a positive one.")
    np.save(folder / "document_ends.npy", np.cumsum(np.array(lengths, np.int64)))
    np.save(folder / "key_ends.npy", np.cumsum(np.array(key_lengths, np.int64)))
    np.save(folder / "key_hashes.npy", np.array(hashes, np.uint64))
    digest.update(lengths)
    digest.update(hashes)
    names: tuple[str, ...] = FILES
    if not stretches.are_all_one:
        stretches.save(folder)
        digest.update(stretches.bytes())
        names = (*FILES, *weights.FILES)
    meta = {
        "format": FORMAT,
        "written": time.time(),
        "dtype": dtype.name,
        "digest": digest.hexdigest(),
        "files": {name: checksum(folder / name) for name in names},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return written


def key_hash(key: bytes) -> int:
    """Return the 64-bit hash of a document's key."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def checksum(path: Path) -> list[int]:
    """Return the size of a file and the CRC-32 of its first 64 MiB."""
    with path.open("rb") as stream:
        return [path.stat().st_size, zlib.crc32(stream.read(_CHECKED_BYTES))]
