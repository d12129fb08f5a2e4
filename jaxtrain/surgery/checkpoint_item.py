"""Writing and reading the parameters of an Orbax checkpoint one piece at a time.

Orbax itself saves only a tree that is wholly in memory. Here the leaves are LazyLeafs. A TypeHandler, Orbax's extension
point for kinds of leaves, writes one chunk of a leaf after the other to the disk. Orbax restores the result like any
other checkpoint. Reading does not use Orbax, but the TensorStore format of its files.

Both ways take host memory for the two largest tensors and a few chunks. A chunk is at most a quarter of the largest
tensor, or 1 MiB if that is more. Checkpoints that training wrote take more memory, because their chunks are whole
shards of a parameter.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxtrain.plain_path import plain_path
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.layouts import LAYOUT, as_now, as_saved
from jaxtrain.surgery.lazy import Box, LazyLeaf, Rows

LARGEST_CHUNK_BYTES, SMALLEST_CHUNK_BYTES = 1 << 26, 1 << 20  # of a written file; a few chunks are in memory at once


class LazyLeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes LazyLeafs in Orbax's format for numpy arrays, one leaf after the other and chunk by chunk."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values, infos, args=None) -> Sequence[ocp.future.Future]:
        for value, info, arg in zip(values, infos, args, strict=True):
            for future in await super().serialize([value], [info], [arg]):
                future.result()
        return []

    async def _open_and_write(self, value: LazyLeaf, tspec: dict, ts_context: tensorstore.Context) -> None:
        # This overrides the only method of NumpyHandler that takes the whole array. If a later Orbax does not call it,
        # saving raises an error, because a LazyLeaf is no array.
        store = await tensorstore.open(tensorstore.Spec(tspec), create=True, open=True, context=ts_context)
        for box in boxes(value.shape, _shape(store.chunk_layout.write_chunk)):
            await store[box].write(value.read(box))


def _shape(chunk: tensorstore.ChunkLayout.Grid) -> tuple[int, ...]:
    """Return the shape of an open store's chunks."""
    return cast(tuple[int, ...], chunk.shape)  # only a ChunkLayout without a store may have None in it


def boxes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Box]:
    """Yield the boxes of a grid of chunks. Boxes at the edges are cut to the shape."""
    corners = itertools.product(*(range(0, size, step) for size, step in zip(shape, chunk, strict=True)))
    for corner in corners:
        yield tuple(slice(at, min(at + step, size)) for at, step, size in zip(corner, chunk, shape, strict=True))


def write_params(step: Path, params: ParamTree, buffers: ParamTree | None = None) -> None:
    """Write the folder of a checkpoint that has no training state. Leaves are LazyLeafs.

    Raises:
        ValueError: the written checkpoint cannot be opened.
    """
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyLeaf, LazyLeafHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    trees = {"params": params} | ({"buffers": buffers} if buffers else {})
    handler = ocp.CompositeCheckpointHandler(
        **{item: ocp.PyTreeCheckpointHandler(type_handler_registry=registry) for item in trees}
    )
    step.parent.mkdir(parents=True, exist_ok=True)
    with plain_path(step.parent) as folder, ocp.Checkpointer(handler) as checkpointer:
        chunk = _chunk_bytes(params)
        args = {
            item: ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda leaf: _save_args(leaf, chunk), tree))
            for item, tree in trees.items()
        }
        checkpointer.save(folder / step.name, args=ocp.args.Composite(**args))
    for item, tree in trees.items():
        with open_params(step, tree, layout=LAYOUT, item=item):
            pass  # it has everything that a restore needs


def _tensor_bytes(leaf: LazyLeaf) -> int:
    """Return the size of one Hugging Face tensor: a whole parameter, or one repeat of a stacked one."""
    return leaf.size_bytes // leaf.shape[0] if len(leaf.shape) > 2 else leaf.size_bytes


def _chunk_bytes(params: ParamTree) -> int:
    """Return a quarter of the largest tensor, within limits, so that chunks take no more memory than tensors do."""
    largest = max(map(_tensor_bytes, jax.tree.leaves(params)))
    return min(LARGEST_CHUNK_BYTES, max(SMALLEST_CHUNK_BYTES, largest // 4))


def _save_args(leaf: LazyLeaf, chunk_bytes: int) -> ocp.SaveArgs:
    if len(leaf.shape) > 2 and leaf.size_bytes > chunk_bytes:  # cut it between repeats
        return ocp.SaveArgs(chunk_byte_size=min(chunk_bytes, _tensor_bytes(leaf)), shard_axes=(0,))
    return ocp.SaveArgs(chunk_byte_size=chunk_bytes)


class CheckpointLeaf(LazyLeaf):
    """A parameter in a checkpoint. Its repeats are read one by one if chunks are single repeats, or else together."""

    def __init__(self, store: tensorstore.TensorStore):
        self._store = store
        self.shape = tuple(store.shape)
        self.dtype = store.dtype.numpy_dtype

    def read(self, box: Box = ()) -> np.ndarray:
        """Return the parameter, or a box of it. Its chunks are read one at a time."""
        store = self._store[box]
        store = store[tensorstore.d[:].translate_to[0]] if store.rank else store
        whole = np.empty(store.shape, self.dtype)
        for part in boxes(store.shape, _shape(store.chunk_layout.read_chunk)):
            whole[part] = store[part].read().result()
        return whole

    def rows(self) -> Rows:
        if _shape(self._store.chunk_layout.read_chunk)[0] == 1:
            return lambda repeat: self.read() if repeat is None else self.read((slice(repeat, repeat + 1),))[0]
        whole = self.read()
        return lambda repeat: whole if repeat is None else whole[repeat]


@contextlib.contextmanager
def open_params(step: Path, target: ParamTree, *, layout: int, item: str = "params") -> Iterator[ParamTree]:
    """Yield an item of a checkpoint as CheckpointLeafs in a tree like `target`, to be read inside the `with`.

    The item is "params" or "buffers". `layout` is the layout of the checkpoint.

    Raises:
        ValueError: the checkpoint lacks a parameter of `target`, or has it in another shape.
    """
    driver = "zarr3" if json.loads((step / item / "_METADATA").read_text())["use_zarr3"] else "zarr"
    # A chunk being read is in memory up to three times (as stored, decoded, copied): read only two chunks at once.
    context = tensorstore.Context({"file_io_concurrency": {"limit": 2}, "data_copy_concurrency": {"limit": 2}})

    def leaf(path, wanted) -> CheckpointLeaf:
        name = ".".join(str(entry.key) for entry in path)
        try:
            spec = {"driver": driver, "kvstore": {**store, "path": f"{name}/"}}
            found = CheckpointLeaf(tensorstore.open(spec, open=True, read=True, context=context).result())
        except ValueError as error:
            raise ValueError(
                f"{step} has no {name}, which the configuration asks for: it is of another model"
            ) from error
        if found.shape != wanted.shape:
            raise ValueError(f"{step}: {name} is {found.shape}, the configuration has {wanted.shape}: another model's")
        return found

    with plain_path(step.parent) as folder:
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder / step.name / item}/"}}
        yield as_now(jax.tree_util.tree_map_with_path(leaf, as_saved(target, layout)), target, layout)
