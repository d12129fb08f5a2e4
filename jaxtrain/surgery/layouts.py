"""Conversion of parameter trees between the current layout of checkpoints and earlier ones.

Layout 1 differs from the current layout 2 in three ways. Layers had matrices instead of linears (`query` for
`query/kernel`, `query_bias` for `query/bias`). The one stack was `blocks`, beside the other parameters, and not
`stacks/blocks`. The part of a training state without parameters had an empty `params` in their place.
"""

from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxtrain.shapes import ParamTree

LAYOUT = 2  # the layout that is written now
Path = tuple[str | int, ...]

_LINEARS = {
    "mixer": ("query", "key", "value", "output", "beta"),
    "heads": ("query", "key", "value", "gate", "output"),  # of recurrent mixers
    "decay": ("down", "up"),
    "mlp": ("gate", "up", "down"),
}
_KERNELS: dict[Path, Path] = {
    (layer, name, "kernel"): (layer, name) for layer, names in _LINEARS.items() for name in names
}
_BIASES: dict[Path, Path] = {
    (layer, name, "bias"): (layer, f"{name}_bias") for layer, names in _LINEARS.items() for name in names
}
_LAYOUT_1 = _KERNELS | _BIASES | {("decay", "step", "kernel"): ("decay", "weight")}


def as_saved(tree: Any, layout: int) -> Any:
    """Return a tree with the names that `layout` has for its leaves. Parameter trees may be anywhere in it."""
    if layout == LAYOUT:
        return tree
    renamed = jax.tree.map(lambda x: _in_layout_1(x) if _is_model(x) else x, tree, is_leaf=_is_model)
    return renamed | {"params": {}} if isinstance(tree, dict) and "opt_state" in tree else renamed


def as_now(saved: Any, like: Any, layout: int) -> Any:
    """Return the leaves of a saved tree in the structure of `like`. The structure of `saved` is as_saved(like)."""
    leaves, structure = jax.tree.flatten(like)
    numbered = jax.tree.unflatten(structure, range(len(leaves)))
    numbers = jax.tree.leaves(as_saved(numbered, layout))
    by_number = dict(zip(numbers, jax.tree.leaves(saved), strict=True))
    return jax.tree.unflatten(structure, [by_number[number] for number in range(len(leaves))])


def _is_model(tree: Any) -> bool:
    return isinstance(tree, dict) and "stacks" in tree


def _in_layout_1(params: ParamTree) -> ParamTree:
    return unflatten_dict({_path_in_layout_1(path): leaf for path, leaf in flatten_dict(params).items()})


def _path_in_layout_1(path: Path) -> Path:
    path = path[1:] if path[0] == "stacks" else path
    for i in range(len(path) - 2):
        if found := _LAYOUT_1.get(path[i : i + 3]):
            return (*path[:i], *found, *path[i + 3 :])
    return path
