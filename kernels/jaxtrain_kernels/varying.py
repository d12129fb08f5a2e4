"""Inside a shard_map: over which mesh axes arrays vary, and how to make arrays vary over the same ones, for kernels."""

import jax
from jaxtyping import Array


def varying(x: Array | None) -> frozenset[str]:
    """Return the mesh axes over which the array varies between devices; none outside a shard_map."""
    return frozenset() if x is None else jax.typeof(x).manual_axis_type.varying


def alike[T: (Array, Array | None)](*arrays: T) -> tuple[T, ...]:
    """Return the arrays, each varying over every mesh axis of a shard_map over which any of them varies.

    Then a gradient has the type of its array. The gradient of an array that devices share is summed over them, outside
    of the custom derivative.
    """
    return vary(frozenset().union(*map(varying, arrays)), *arrays)


def vary[T: (Array, Array | None)](axes: frozenset[str], *arrays: T) -> tuple[T, ...]:
    """Return the arrays, varying over these axes at least."""
    missing = [tuple(sorted(axes - varying(x))) for x in arrays]
    pairs = zip(arrays, missing, strict=True)
    return tuple(x if x is None or not to else jax.lax.pcast(x, to, to="varying") for x, to in pairs)
