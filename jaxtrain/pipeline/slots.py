"""Entries of buffers, read and written in place."""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # of arrays


def at(tree: Tree, *index) -> Tree:
    """Read one entry of the leading axes."""
    return jax.tree.map(lambda x: x[index], tree)


def put(buffer: jax.Array, value: jax.Array, *index) -> jax.Array:
    """Write one entry of the leading axes, in place."""
    index = [jnp.where(i < 0, i + size, i) for i, size in zip(index, buffer.shape, strict=False)]
    value = value.reshape((1,) * len(index) + value.shape)
    return jax.lax.dynamic_update_slice(buffer, value, (*index, *(0,) * (buffer.ndim - len(index))))


def put_each(buffers: list[jax.Array], values: list[jax.Array], *index) -> list[jax.Array]:
    """Write one entry of several buffers."""
    return [put(buffer, value, *index) for buffer, value in zip(buffers, values, strict=True)]


def put_if(buffer: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Write an entry unless its index is -1; for buffers without a slot to spare. A loop of no round copies nothing."""
    return jax.lax.fori_loop(0, jnp.where(index < 0, 0, 1), lambda _, buffer: put(buffer, value, index), buffer)
