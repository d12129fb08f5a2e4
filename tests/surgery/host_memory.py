"""Prints the most memory that an import, an export and a merge of models of 142 MB hold, above what was held before: a
program of its own, as what another test has freed would hide it; read from the system, which sees TensorStore's too."""

import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np

from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.presets import llama
from jaxtrain.surgery.checkpoint_item import open_params, write_params
from jaxtrain.surgery.huggingface import export_folder, open_folder
from jaxtrain.surgery.layouts import LAYOUT
from jaxtrain.surgery.lazy import LazyLeaf
from jaxtrain.surgery.merging import Assembly, merged


class Ones(LazyLeaf):
    def __init__(self, shape):
        self.shape, self.dtype = shape, np.dtype(np.float32)

    def read(self, box=()):
        return np.ones(self.shape, self.dtype)[box]

    def rows(self):
        return lambda repeat: np.ones(self.shape if repeat is None else self.shape[1:], self.dtype)


def held_bytes():
    """Return the memory of the process that is not of files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def most_above_now(action):
    before, done, most = held_bytes(), threading.Event(), []

    def watch():
        while not done.is_set():
            most.append(held_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return max(most) - before


def main(folder):
    config = llama(vocab_size=8000, d_model=512, layers=8, heads=8, kv_heads=8, hidden=1536, max_length=64)
    _, (shapes, *_), (axes, *_) = abstract_model(config)
    export_folder(config, jax.tree.map(lambda leaf: Ones(leaf.shape), shapes), folder / "given")
    _, leaves = open_folder(folder / "given")
    print(most_above_now(lambda: write_params(folder / "0", leaves)))
    with open_params(folder / "0", shapes, layout=LAYOUT) as params:
        print(most_above_now(lambda: export_folder(config, params, folder / "back")))
        merge = Assembly(weights=(0.25, 0.5, 0.25), threshold=1e-9)  # reads each tensor of every parent twice
        print(most_above_now(lambda: write_params(folder / "1", merged(merge, [params] * 3, axes, shapes))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
