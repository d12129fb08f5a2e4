"""The all-to-all over the devices that hold experts, in one hop or in hops by the speed of links.

The hops are 2DH of Hwang et al. (2022), arXiv:2206.03382: messages over slow links are fewer and larger.
"""

import math

import jax
from jaxtyping import Array, Shaped


def check_near(near: int, axis: str, size: int) -> None:
    """Raise ValueError if a mesh axis of several devices has no groups of so many."""
    if size > 1 and size % near:
        raise ValueError(f"near={near}: does not divide mesh.{axis}={size}; choose a divisor of {size}")


def all_to_all(parts: Shaped[Array, "X ..."], axes: tuple[str, ...], near: int = 1) -> Shaped[Array, "X ..."]:
    """Return the part that each device of the mesh axes has for this one, from one part for each of them.

    With `near` above 1 the other axes come first, then groups of `near` neighbours along the last one, then devices of
    the same place in these groups. The result is the same, bit for bit.

    Raises:
        ValueError: `near` does not divide the last axis.
    """
    *others, last = axes
    size = jax.lax.axis_size(last)
    check_near(near, last, size)
    if near == 1 or size == 1:
        return jax.lax.all_to_all(parts, axes, 0, 0)
    neighbours = [[first + at for at in range(near)] for first in range(0, size, near)]
    sizes = [*map(jax.lax.axis_size, others), size // near, near]
    assert math.prod(sizes) == len(parts)
    split = parts.reshape(*sizes, *parts.shape[1:])
    for place, axis in enumerate(others):
        split = jax.lax.all_to_all(split, axis, place, place)
    split = jax.lax.all_to_all(split, last, len(others) + 1, len(others) + 1, axis_index_groups=neighbours)
    same_place = [list(group) for group in zip(*neighbours, strict=True)]
    split = jax.lax.all_to_all(split, last, len(others), len(others), axis_index_groups=same_place)
    return split.reshape(parts.shape)
