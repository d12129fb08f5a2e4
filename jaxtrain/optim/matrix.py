"""Which matrix a parameter is, by the logical names of its axes: the one rule of rows and columns.

A layer keeps the heads of a projection as an axis of their own, `[embed, heads, head_dim]`. The matrix is
embed x (heads and head_dim): heads and their channels are one side. In a stack there is such a matrix a layer.
"""

import math

import jax


def is_names(x) -> bool:
    """Tell the leaves of a tree of logical names, which are tuples, from its inner nodes."""
    return isinstance(x, tuple)


def is_matrix(names: tuple[str | None, ...]) -> bool:
    """Tell a weight matrix from a vector: a norm scale, a bias, a rate."""
    return len(_sides(names)) > 1


def matrices(names: dict) -> dict:
    """Return a tree of booleans: which parameters are matrices."""
    return jax.tree.map(is_matrix, names, is_leaf=is_names)


def matrix_shape(names: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (rows, columns) of a matrix, and the length alone of a vector; `shape` is that of one layer."""
    return tuple(math.prod(shape[axis] for axis in side) for side in _sides(names))


def _sides(names: tuple[str | None, ...]) -> list[list[int]]:
    """Return the axes of each side, counted within one layer."""
    sides = []
    for axis, name in enumerate(name for name in names if name != "layers"):
        if name == "head_dim" and sides:
            sides[-1].append(axis)
        else:
            sides.append([axis])
    return sides
