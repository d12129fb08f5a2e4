"""The parameters of an Orbax checkpoint, written and read a piece at a time.

Orbax itself wants a whole tree in memory to save one. Here the leaves are LazyLeafs: Orbax is told how to write one
(its seam for this is the TypeHandler) and asks for a chunk of a leaf when the one before it is on the disk. What it
writes it restores like any other checkpoint. Reading goes by whole leaves.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.lazy import Box, LazyLeaf, Rows

CHUNK_BYTES = 1 << 26  # of a file; a few of them are in memory at once


class LazyLeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes LazyLeafs as Orbax writes numpy arrays, one leaf after the other and each by chunks."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values, infos, args=None) -> Sequence[ocp.future.Future]:
        for value, info, arg in zip(values, infos, args, strict=True):
            for future in await super().serialize([value], [info], [arg]):
                future.result()
        return []

    async def _open_and_write(self, value: LazyLeaf, tspec: dict, ts_context: tensorstore.Context) -> None:
        # The one step of NumpyHandler that takes the whole array. Should Orbax no longer call it, saving fails, as
        # a LazyLeaf is no array.
        store = await tensorstore.open(tensorstore.Spec(tspec), create=True, open=True, context=ts_context)
        for box in boxes(value.shape, store.chunk_layout.write_chunk.shape):
            await store[box].write(value.read(box))


def boxes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> Iterator[Box]:
    """Yield the boxes of a grid of chunks, those at the edges cut to the shape."""
    corners = itertools.product(*(range(0, size, step) for size, step in zip(shape, chunk, strict=True)))
    for corner in corners:
        yield tuple(slice(at, min(at + step, size)) for at, step, size in zip(corner, chunk, shape, strict=True))


def write_params(checkpoints: Path, step: int, params: ParamTree) -> Path:
    """Write a checkpoint that has parameters only, and return its folder. Leaves of `params` are LazyLeafs."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyLeaf, LazyLeafHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    handlers = {"params": ocp.PyTreeCheckpointHandler(type_handler_registry=registry)}
    with ocp.CheckpointManager(checkpoints.absolute(), item_handlers=handlers, options=options) as manager:
        args = ocp.args.PyTreeSave(params, save_args=jax.tree.map(_save_args, params))
        manager.save(step, args=ocp.args.Composite(params=args), force=True)
    return checkpoints / str(step)


def _save_args(leaf: LazyLeaf) -> ocp.SaveArgs:
    # A stacked parameter is cut between repeats, which lie in tensors of their own.
    stacked = len(leaf.shape) > 2 and leaf.size_bytes > CHUNK_BYTES
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())


class CheckpointLeaf(LazyLeaf):
    """A parameter in a checkpoint."""

    def __init__(self, item: Path, path: tuple[str | int, ...], shape: tuple[int, ...], dtype: np.dtype):
        self._item = item
        self._path = path
        self.shape = shape
        self.dtype = dtype

    def read(self, box: Box = ()) -> np.ndarray:
        target = jax.ShapeDtypeStruct(self.shape, self.dtype)
        args: ParamTree | ocp.RestoreArgs = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(self._path):
            target, args = {key: target}, {key: args}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restore = ocp.args.PyTreeRestore(item=target, restore_args=args, partial_restore=True)
            found = checkpointer.restore(self._item.absolute(), args=restore)
        for key in self._path:
            found = found[key]
        return found[box]

    def rows(self) -> Rows:
        whole = self.read()
        return lambda repeat: whole if repeat is None else whole[repeat]


def open_params(step: Path, target: ParamTree) -> ParamTree:
    """Return the parameters of a checkpoint as CheckpointLeafs, in a tree like `target`, reading none yet.

    Raises:
        ValueError: the checkpoint lacks a parameter of `target`, or has it in another shape.
    """
    item = step / "params"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(item.absolute()).item_metadata.tree

    def leaf(path, wanted) -> CheckpointLeaf:
        keys = tuple(entry.key for entry in path)
        found = stored
        for key in keys:
            found = found.get(str(key), {})
        name = ".".join(map(str, keys))
        if found == {} or tuple(found.shape) != wanted.shape:
            shape = "none" if found == {} else tuple(found.shape)
            raise ValueError(f"{step}: {name} is {shape}, the configuration has {wanted.shape}: it is of another model")
        return CheckpointLeaf(item, keys, wanted.shape, np.dtype(found.dtype))

    return jax.tree_util.tree_map_with_path(leaf, target)
