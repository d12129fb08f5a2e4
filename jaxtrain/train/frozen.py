"""Frozen trees in a run folder: each is written once, under a fingerprint of its values, and checkpoints refer to it.

`checkpoints/frozen/0f3a...` has an Orbax item and a manifest, as a checkpoint has.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.shapes import ParamTree
from jaxtrain.train.folder import flush_folder, free_name
from jaxtrain.train.manifest import read_manifest, write_manifest

FOLDER = "frozen"
_SEEDS = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)
log = logging.getLogger(__name__)


def fingerprint(tree: ParamTree) -> str:
    """Return a fingerprint of the paths, shapes, dtypes and bits of a tree; "" if it has no leaves.

    It does not depend on the layout over devices. Two trees that differ by accident have the same fingerprint with a
    probability of 2^-128.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return ""
    sums = jax.device_get(_all_sums([leaf for _, leaf in leaves]))
    parts = [
        [jax.tree_util.keystr(path), list(leaf.shape), leaf.dtype.name, of_leaf.tolist()]
        for (path, leaf), of_leaf in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@jax.jit
def _all_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_sums(leaf) for leaf in leaves]


def _sums(x: jax.Array) -> jax.Array:
    """Return four sums, modulo 2^32, of a hash of every element and its index. They do not depend on the order."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    bits = x.astype(jnp.uint32)
    return jnp.stack([jnp.sum(_mixed(bits ^ _mixed(index + np.uint32(seed))), dtype=jnp.uint32) for seed in _SEEDS])


def _mixed(x: jax.Array) -> jax.Array:
    """Return the finaliser of MurmurHash3 (Appleby, 2011): every bit of it depends on every bit of `x`."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def finish(saving: Path) -> None:
    """Write the manifest of a tree that is written, and give it its final name."""
    write_manifest(saving)
    finished = saving.with_suffix("")
    if finished.exists():  # it is damaged: otherwise it would not be written again
        finished.rename(free_name(finished.parent, f"{finished.name}.damaged-{{}}"))
    saving.rename(finished)
    flush_folder(saving.parent)


def remove_unused(checkpoints: list[Path], folder: Path) -> None:
    """Remove the trees that none of the checkpoints refers to. If a manifest cannot be read, remove none."""
    if not folder.is_dir():
        return
    try:
        used = {read_manifest(path, renamed=True).frozen for path in checkpoints}
    except ValueError:
        return
    for tree in folder.iterdir():
        if tree.name.partition(".")[0] not in used:
            log.info("frozen weights %s are no longer referred to", tree)
            shutil.rmtree(tree.rename(tree.with_suffix(".removing")), ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for suffix in ("saving", "removing"):
        for tree in folder.glob(f"*.{suffix}"):
            shutil.rmtree(tree, ignore_errors=True)
