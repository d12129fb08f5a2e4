"""Trees of parameters as earlier layouts of checkpoints have them.

Layout 1: the one stack lies beside the other parameters as `blocks`, where today it is `stacks/blocks`; and what a
training state holds besides its parameters has an empty place for them.
"""

from typing import Any

import jax

from jaxtrain.shapes import ParamTree

LAYOUT = 2  # of what is written today


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
    return {name: tree for name, tree in params.items() if name != "stacks"} | params["stacks"]
