"""The matrix that a parameter stands for: which of its axes are rows and which columns, by their logical names.

A layer keeps the heads of a projection as an axis of their own, `[embed, heads, head_dim]`. The matrix is
embed x (heads and head_dim): heads and their channels are one side. A stack has such a matrix for each layer, and for
each of its experts.
"""

import math

import jax

from jaxtrain.axes import EXPERTS, STACK, Axes


def decays(axes: dict) -> dict:
    """Return a tree of booleans: the parameters to which weight decay applies."""
    return jax.tree.map(lambda facts: facts.decays, axes)


def matrix_shape(axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (rows, columns) of a matrix, or (length,) of a vector. `shape` is that of one."""
    return tuple(math.prod(shape[axis] for axis in side) for side in sides(axes))


def sides(axes: Axes) -> list[list[int]]:
    """Return the axes of each side, counted within one matrix."""
    sides: list[list[int]] = []
    for axis, name in enumerate(axes.of_one(STACK).of_one(EXPERTS).names):
        if name == "head_dim" and sides:
            sides[-1].append(axis)
        else:
            sides.append([axis])
    return sides
