"""Folders of safetensors, of which one tensor at a time is memory-mapped or written.

A file has a length (8 bytes), a JSON header and the bytes of the tensors. The `safetensors` package checks the header.
Tensors are mapped here, so that no more than one is in memory, and written here, because the package takes all tensors
of a file at once. A large model has several files and an index.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxtrain.surgery.huggingface.files import AGAIN, read_json, reading

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
PARTS = 64  # of a tensor, compared one after the other
SHOWN = 5  # most names in an error


class Stored(NamedTuple):
    """The place of a tensor in a file. `dtype` is its name in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def map(self) -> np.ndarray:
        """Return the tensor as a read-only memory map of the file, whose memory is freed with the array."""
        with reading(self.file):
            return np.memmap(self.file, DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape)


def same_values(one: Stored, other: Stored) -> bool:
    """Tell whether two tensors have equal values, reading one part of them at a time."""
    if one.shape != other.shape or not {one.dtype, other.dtype} <= DTYPES.keys():
        return False
    parts = (np.array_split(tensor.map().reshape(-1), PARTS) for tensor in (one, other))
    return all(
        np.array_equal(a.astype(np.float32), b.astype(np.float32), equal_nan=True) for a, b in zip(*parts, strict=True)
    )


def stored_tensors(folder: Path, ignored: str) -> dict[str, Stored]:
    """Return every tensor of a folder by name, except those whose names match `ignored`.

    Raises:
        ValueError: files are missing or damaged, or contradict each other about a tensor.
    """
    single, index, ignoring = folder / SINGLE, folder / INDEX, re.compile(ignored)
    if (folder / ADAPTER).exists():
        raise ValueError(f"{folder / ADAPTER}: convert reads whole models; merge the adapter into its model first")
    if not index.exists() and not single.exists():
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}: save the weights as safetensors first")
    if not index.exists():
        return _tensors(single, ignoring)
    stored = _shards(index, ignoring)
    beside = single.exists() and all(tensor.file != single for tensor in stored.values())
    if beside and not _agree(stored, _tensors(single, ignoring)):
        raise ValueError(f"{single} and the shards of {INDEX} hold different tensors: remove what is not the model's")
    return stored


def _shards(index: Path, ignored: re.Pattern) -> dict[str, Stored]:
    """Return the tensors of the files that an index names.

    Raises:
        ValueError: the index does not name exactly these tensors, each in its file; or two files have the same tensor.
    """
    weight_map = {name: file for name, file in _weight_map(index).items() if not ignored.fullmatch(name)}
    files = sorted(set(weight_map.values()))
    missing = [name for name in files if not (index.parent / name).exists()]
    if missing:
        raise ValueError(
            f"{index.parent} lacks {', '.join(missing)}, {len(missing)} of the {len(files)} shards that {INDEX} names: "
            f"download the missing files into the folder"
        )
    stored: dict[str, Stored] = {}
    for file in files:
        found = _tensors(index.parent / file, ignored)
        if twice := stored.keys() & found.keys():
            raise ValueError(f"{stored[min(twice)].file} and {file} both have {some(twice)}: remove one of them")
        stored |= found
    file_names = {name: tensor.file.name for name, tensor in stored.items()}
    if wrong := dict(weight_map.items() ^ file_names.items()):
        raise ValueError(f"{index} is at odds with its files over {some(wrong)}: {AGAIN}")
    return stored


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: weight_map does not name a file for each tensor: {AGAIN}")
    for file in weight_map.values():
        if file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise ValueError(f"{index}: weight_map names {file!r}, which is no file of its folder: {AGAIN}")
    return weight_map


def _agree(one: Mapping[str, Stored], other: Mapping[str, Stored]) -> bool:
    return one.keys() == other.keys() and all(same_values(one[name], other[name]) for name in one)


def _tensors(file: Path, ignored: re.Pattern) -> dict[str, Stored]:
    with reading(file):
        try:
            with safe_open(file, "np"):
                pass  # checks the header against the length of the file
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or cut short ({error}): {AGAIN}") from error
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if not ignored.fullmatch(name)
    }


def some(names: Collection[str]) -> str:
    """Return the first few names as text, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


class Planned(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class Writer:
    """Writes planned tensors, in any order, into files of at most `max_shard_bytes`. A context manager."""

    def __init__(self, folder: Path, planned: Mapping[str, Planned], *, max_shard_bytes: int):
        self._places: dict[str, tuple[BinaryIO, int]] = {}  # tensor name: open file and offset
        shards = _split(planned, max_shard_bytes)
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        with ExitStack() as self._stack:  # closes the open files if creating the next one fails
            for file, shard in zip(files if len(shards) > 1 else [SINGLE], shards, strict=True):
                self._create(folder / file, {name: planned[name] for name in shard})
            if len(shards) > 1:
                _write_index(folder / INDEX, planned, dict(zip(files, shards, strict=True)))
            self._stack = self._stack.pop_all()

    def _create(self, file: Path, tensors: Mapping[str, Planned]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, end = {}, 0
        # Widest dtypes first, then by name: the order of the safetensors package, so equal tensors give equal files.
        for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            starts[name] = end
            offsets = [end, end := end + tensor.size_bytes]
            header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        stream = self._stack.enter_context(file.open("wb"))
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(stream.tell() + end)
        data = stream.tell()
        self._places |= {name: (stream, data + start) for name, start in starts.items()}

    def write(self, name: str, array: np.ndarray) -> None:
        """Write a contiguous array to the place of a tensor."""
        stream, offset = self._places.pop(name)
        stream.seek(offset)
        stream.write(array.reshape(-1).view(np.uint8).data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *error) -> None:
        self._stack.close()
        assert kind is not None or not self._places, f"never written: {', '.join(self._places)}"


def _write_index(path: Path, planned: Mapping[str, Planned], shards: Mapping[str, list[str]]) -> None:
    metadata = {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in planned.values()),
        "total_size": sum(tensor.size_bytes for tensor in planned.values()),
    }
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(planned: Mapping[str, Planned], max_shard_bytes: int) -> list[list[str]]:
    """Return the names of the tensors of each file, in the order of the plan.

    A tensor larger than the limit has a file of its own.
    """
    shards: list[list[str]] = []
    room = 0
    for name, tensor in planned.items():
        if not shards or tensor.size_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= tensor.size_bytes
    return shards
