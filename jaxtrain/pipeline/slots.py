"""Entries of buffers, read and written in place."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # of arrays
Arrays = list[jax.Array]


def at(tree: Tree, *index) -> Tree:
    """Read one entry of the leading axes."""
    return jax.tree.map(lambda x: x[index], tree)


def put(buffer: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Write one entry of the leading axis, in place."""
    index = jnp.where(index < 0, index + len(buffer), index)
    return jax.lax.dynamic_update_slice(buffer, value[None], (index, *(0,) * value.ndim))


def put_all(buffers: list[jax.Array], values: list[jax.Array], index: jax.Array) -> list[jax.Array]:
    """Write one entry of several buffers."""
    return [put(buffer, value, index) for buffer, value in zip(buffers, values, strict=True)]


def put_if(buffer: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Write one entry unless the index is -1, for buffers without a slot to spare.

    A loop of one round or none writes in place, where a choice between old value and new has the buffer copied.
    """
    return jax.lax.fori_loop(0, jnp.where(index < 0, 0, 1), lambda _, buffer: put(buffer, value, index), buffer)
