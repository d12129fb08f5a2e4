"""Which dtypes queries, keys and values may have."""

import jax.numpy as jnp
from jaxtyping import Array


def check_dtypes(q: Array, k: Array, v: Array) -> None:
    """Raise ValueError unless they share a float dtype of at least 16 bits (JAX does not promote 8-bit floats)."""
    if not (q.dtype == k.dtype == v.dtype and jnp.issubdtype(q.dtype, jnp.floating) and q.dtype.itemsize > 1):
        dtypes = f"{q.dtype}, {k.dtype} and {v.dtype}"
        raise ValueError(f"q, k and v are {dtypes}: give one floating-point dtype to all, of 16 bits or more")
