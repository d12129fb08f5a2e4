"""Parameters stream into a checkpoint that Orbax restores, and back out of one, without being in memory whole."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from messages import refused

from jaxtrain.surgery import checkpoint_item
from jaxtrain.surgery.checkpoint_item import boxes, open_params, write_params
from jaxtrain.surgery.layouts import LAYOUT
from jaxtrain.surgery.lazy import LazyLeaf


class Made(LazyLeaf):
    """A parameter whose values are made when they are asked for."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def read(self, box=()):
        box = box or tuple(slice(0, size) for size in self.shape)
        index = np.ravel_multi_index(np.ogrid[box], self.shape)
        return (index % 251).astype(self.dtype)

    def rows(self):
        return lambda repeat: self.read() if repeat is None else self.read()[repeat]


TREE = {
    "blocks": {"blocks": {0: {"query": Made((6, 40, 30), np.float32), "scale": Made((6, 30), jax.numpy.bfloat16)}}},
    "table": Made((501, 33), np.float32),
}
TARGET = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), TREE)


@pytest.fixture
def step(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_item, "LARGEST_CHUNK_BYTES", 20_000)  # several, with edges, on both kinds
    write_params(tmp_path / "0", TREE)
    return tmp_path / "0"


def equal(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(expected.read(), np.float32))


def test_orbax_restores_what_was_streamed(step):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), TARGET)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        restored = checkpointer.restore(step, args=args)["params"]
    jax.tree.map(equal, restored, TREE)


def test_leaves_of_a_checkpoint_are_read_one_at_a_time(step):
    with open_params(step, TARGET, layout=LAYOUT) as leaves:
        jax.tree.map(lambda leaf, made: equal(leaf.read(), made), leaves, TREE)
        query = leaves["blocks"]["blocks"][0]["query"].rows()
        np.testing.assert_array_equal(query(4), TREE["blocks"]["blocks"][0]["query"].read()[4])


def test_a_folder_in_folders_of_any_name_is_written_and_read(tmp_path):
    folder = tmp_path.joinpath("lr[3e-4]", "back\\slash", "a#b", "a?b", "a%20b", "two words", "веса", "0")
    write_params(folder, TREE)
    with open_params(folder, TARGET, layout=LAYOUT) as leaves:
        jax.tree.map(lambda leaf, made: equal(leaf.read(), made), leaves, TREE)


def test_what_cannot_be_read_again_was_not_written(tmp_path, monkeypatch):
    """Orbax takes the merge of what processes wrote to be done where it finds no process's folder."""
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", lambda handler, folder: None)
    with pytest.raises(ValueError, match="has no blocks"):
        write_params(tmp_path / "0", TREE)


def test_a_checkpoint_of_another_model_is_refused(step):
    for name, shape, facts in (("table", (500, 33), ("table", (501, 33), (500, 33))), ("extra", (2,), ("extra",))):
        target = TARGET | {name: jax.ShapeDtypeStruct(shape, np.float32)}
        with refused(ValueError, *facts), open_params(step, target, layout=LAYOUT):
            pass


def test_boxes_tile_the_shape():
    seen = np.zeros((7, 5), np.int32)
    for box in boxes(seen.shape, (3, 2)):
        seen[box] += 1
    assert (seen == 1).all()


def test_writing_reads_a_chunk_at_a_time_however_large_the_parameters(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_item, "LARGEST_CHUNK_BYTES", 1 << 18)
    tree = {str(i): Made((16, 256, 256), np.float32) for i in range(2)}  # 4 MB each
    largest = []
    read = Made.read
    monkeypatch.setattr(Made, "read", lambda self, box=(): largest.append(read(self, box).nbytes) or read(self, box))
    write_params(tmp_path / "0", tree)
    assert max(largest) == 1 << 18 and sum(largest) == sum(math.prod(leaf.shape) * 4 for leaf in tree.values())


def test_no_way_holds_more_than_the_two_largest_tensors_and_a_few_chunks(tmp_path):
    """Worth its seconds: only a process of its own, asked of the system, shows the memory of TensorStore."""
    program = Path(__file__).with_name("host_memory.py")
    ran = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=True)
    largest = 8000 * 512 * 4  # both tables
    held = [int(line) for line in ran.stdout.split()]
    # How many chunks are in compression and OCDBT at once depends on how busy the machine is: 78 MB were seen.
    limit = 2 * largest + 12 * (largest // 4)  # 82 MB of the model's 142 MB
    assert len(held) == 3 and max(held[:2]) < limit
    assert held[2] < limit + 2 * (largest // 4)  # a merge has two boxes in memory, of the child and of a parent
