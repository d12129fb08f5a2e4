"""An optax transformation that takes norms or matrices, applied to each layer of a stack by itself.

The blocks are stacked over their repeats, so each of their leaves is `[layers, ...]`, and `[layers, experts, ...]` in a
mixture. A transformation that takes the norm of a leaf, or its rows and columns, would take those of the whole stack.
`vmap` over the layers, and over the experts, gives it one at a time, with the same result as for that one alone.
"""

from collections.abc import Callable

import jax
import optax

from jaxtrain.axes import EXPERTS, STACK

Path = tuple


def per_layer(tx: optax.GradientTransformation, axes: dict) -> optax.GradientTransformation:
    """Return `tx` applied to each layer of a stack, and to each expert; to parameters outside of stacks as they are.

    `tx` must treat each parameter apart from the others. The state has the structure that `tx` gives it. The state of a
    stacked parameter is stacked as well. It is found by its path, which ends in the parameter's path. Counters stay one
    number.
    """
    of_layer = jax.tree.map(lambda facts: facts.of_one(STACK), axes)
    return _per_item(_per_item(tx, of_layer, EXPERTS), axes, STACK)


def _per_item(tx: optax.GradientTransformation, axes: dict, over: str) -> optax.GradientTransformation:
    """Return `tx` applied to each item of the stacks over one axis."""
    stacked = {path for path, facts in jax.tree_util.tree_leaves_with_path(axes) if facts.names[:1] == (over,)}
    if not stacked:
        return tx

    def lengths(params: dict) -> dict[Path, int | None]:
        """Return the number of layers of every parameter; None for one that is in no stack."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {path: len(leaf) if path in stacked else None for path, leaf in leaves}

    def init(params: dict) -> optax.OptState:
        layers = lengths(params)
        state = jax.eval_shape(tx.init, jax.tree_util.tree_map_with_path(_first_of(layers), params))
        return _over_layers(tx.init, layers, (params,), like=state)

    def update(gradients: dict, state: optax.OptState, params: dict | None = None) -> tuple[dict, optax.OptState]:
        arguments = (gradients, state, params)
        return _over_layers(tx.update, lengths(gradients), arguments, like=(gradients, state))

    return optax.GradientTransformation(init, update)


def _first_of(layers: dict[Path, int | None]) -> Callable:
    """Return the function that gives the shape of one layer of a parameter."""

    def shape(path: Path, leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[0 if layers[path] is None else 1 :], leaf.dtype)

    return shape


def _over_layers(function: Callable, layers: dict[Path, int | None], arguments: tuple, *, like):
    """Return `function` of the arguments, mapped over the layers of stacks by one vmap for each length of a stack.

    `like` is a tree with the paths of the result.
    """

    def mapped(tree, length: int):
        return jax.tree_util.tree_map_with_path(lambda path, _: 0 if _owner(path, layers) == length else None, tree)

    for length in sorted({length for length in layers.values() if length is not None}):
        into = tuple(mapped(argument, length) for argument in arguments)
        function = jax.vmap(function, in_axes=into, out_axes=mapped(like, length), axis_size=length)
    return function(*arguments)


def _owner(path: Path, layers: dict[Path, int | None]) -> int | None:
    """Return the layers of the parameter that a value belongs to: its path is the longest suffix of the value's."""
    return next((layers[path[start:]] for start in range(len(path)) if path[start:] in layers), None)
