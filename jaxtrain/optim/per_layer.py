"""A transformation that takes norms or matrices, on each layer of a stack.

The blocks are stacked over their repeats, so a leaf of theirs is `[layers, ...]`. A transformation that takes the norm
of a leaf, or its rows and columns, would take those of the whole stack. `vmap` over the stacks makes it see one layer,
and computes what it did for that layer alone.
"""

from collections.abc import Callable

import jax
import optax

from jaxtrain.optim.matrix import is_names

Path = tuple


def per_layer(tx: optax.GradientTransformation, names: dict) -> optax.GradientTransformation:
    """Return `tx`, which sees the layers of a stack one by one, and parameters outside of stacks as they are.

    Its state has the structure that `tx` gives it: what belongs to a parameter of a stack is stacked as well, found by
    its path, which ends in the parameter's; counters stay one number. `tx` treats each parameter apart from the others.
    """
    stacked = {
        path for path, axes in jax.tree_util.tree_leaves_with_path(names, is_leaf=is_names) if axes[0] == "layers"
    }

    def lengths(params: dict) -> dict[Path, int]:
        """Return the layers of every stack; None for what is in no stack."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {path: len(leaf) if path in stacked else None for path, leaf in leaves}

    def init(params: dict) -> optax.OptState:
        layers = lengths(params)
        state = jax.eval_shape(tx.init, jax.tree_util.tree_map_with_path(_first_of(layers), params))
        return _over_layers(tx.init, layers, (params,), like=state)

    def update(gradients: dict, state: optax.OptState, params: dict | None = None) -> tuple[dict, optax.OptState]:
        given = (gradients, state, params)
        return _over_layers(tx.update, lengths(gradients), given, like=(gradients, state))

    return optax.GradientTransformation(init, update)


def _first_of(layers: dict[Path, int | None]) -> Callable:
    """Return the function that gives the shape of one layer of a parameter."""

    def shape(path: Path, leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[0 if layers[path] is None else 1 :], leaf.dtype)

    return shape


def _over_layers(function: Callable, layers: dict[Path, int | None], arguments: tuple, *, like):
    """Return `function` of the arguments, mapped over the layers of stacks; stacks of one length go together.

    `like` has the paths of the result.
    """

    def axes(tree, length: int):
        return jax.tree_util.tree_map_with_path(lambda path, _: 0 if _owner(path, layers) == length else None, tree)

    for length in sorted(set(layers.values()) - {None}):
        into = tuple(axes(argument, length) for argument in arguments)
        function = jax.vmap(function, in_axes=into, out_axes=axes(like, length), axis_size=length)
    return function(*arguments)


def _owner(path: Path, layers: dict[Path, int | None]) -> int | None:
    """Return the layers of the parameter that a value belongs to: the one whose path is the longest end of its own."""
    return next((layers[path[start:]] for start in range(len(path)) if path[start:] in layers), None)
