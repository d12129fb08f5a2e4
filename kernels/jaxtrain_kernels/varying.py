"""Inside a shard_map: which mesh axes arrays vary over, and arrays made to vary alike, as kernels ask of theirs."""

import jax
from jaxtyping import Array


def varying(x: Array | None) -> frozenset[str]:
    """Return the mesh axes over which the array differs between devices; none outside a shard_map."""
    return frozenset() if x is None else jax.typeof(x).manual_axis_type.varying


def alike(*arrays: Array | None) -> tuple[Array | None, ...]:
    """Return the same arrays, each varying over every mesh axis of a shard_map that any of them varies over.

    So a gradient has the type of its array, and that of one all devices share is summed over them behind the custom
    derivative.
    """
    return vary(frozenset().union(*map(varying, arrays)), *arrays)


def vary(axes: frozenset[str], *arrays: Array | None) -> tuple[Array | None, ...]:
    """Return the arrays, varying over these axes at least."""
    missing = [tuple(sorted(axes - varying(x))) for x in arrays]
    pairs = zip(arrays, missing, strict=True)
    return tuple(x if x is None or not to else jax.lax.pcast(x, to, to="varying") for x, to in pairs)
