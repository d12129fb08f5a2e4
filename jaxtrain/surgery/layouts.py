"""Trees of parameters as earlier layouts of checkpoints have them.

Layout 1: layers owned matrices where they own linears today (`query` for `query/kernel`, `query_bias` for
`query/bias`); the one stack lay beside the other parameters as `blocks`, where it is `stacks/blocks` today; and what a
training state holds besides its parameters had an empty place for them.
"""

from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxtrain.shapes import ParamTree

LAYOUT = 2  # of what is written today
Path = tuple[str | int, ...]

_LINEARS = {
    "mixer": ("query", "key", "value", "output", "beta"),
    "heads": ("query", "key", "value", "gate", "output"),  # of recurrent mixers
    "decay": ("down", "up"),
    "mlp": ("gate", "up", "down"),
}
_KERNELS = {(layer, name, "kernel"): (layer, name) for layer, names in _LINEARS.items() for name in names}
_BIASES = {(layer, name, "bias"): (layer, f"{name}_bias") for layer, names in _LINEARS.items() for name in names}
_LAYOUT_1 = _KERNELS | _BIASES | {("decay", "step", "kernel"): ("decay", "weight")}


def as_saved(tree: Any, layout: int) -> Any:
    """Return a tree, in which trees of parameters may lie anywhere, with the names that a layout has for its leaves."""
    if layout == LAYOUT:
        return tree
    renamed = jax.tree.map(lambda x: _in_layout_1(x) if _is_model(x) else x, tree, is_leaf=_is_model)
    return renamed | {"params": {}} if isinstance(tree, dict) and "opt_state" in tree else renamed


def as_now(saved: Any, like: Any, layout: int) -> Any:
    """Return the leaves of a saved tree in the structure of `like`, of which `as_saved` has made its own."""
    leaves, structure = jax.tree.flatten(like)
    places = jax.tree.leaves(as_saved(structure.unflatten(range(len(leaves))), layout))
    by_place = dict(zip(places, jax.tree.leaves(saved), strict=True))
    return structure.unflatten(by_place[place] for place in range(len(leaves)))


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
