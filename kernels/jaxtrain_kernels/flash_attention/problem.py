"""What every implementation of attention is given, and the definition of its mask.

Letters: B batch, L queries, S keys, H query heads, J key heads, K key dim, V value dim. Query i stands at `offset + i`
on the keys' axis.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # the scores of keys out of sight
LOWEST = -5e29  # above it lies every maximum of keys in sight, so that exp(MASKED - maximum) is 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """How much is computed at once: rows of the batch, queries, keys; None leaves it to the implementation.

    `written_out` is the most blocks of queries that are written out one by one (`xla`); more are a loop.
    """

    rows: int | None = None
    queries: int | None = None
    keys: int | None = None
    written_out: int | None = None

    def __post_init__(self):
        for name in ("rows", "queries", "keys", "written_out"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name}={size}: a block holds at least 1")

    def or_else(self, other: "Blocks") -> "Blocks":
        """Return these sizes, with those of `other` where none is given."""
        return Blocks(
            rows=self.rows or other.rows,
            queries=self.queries or other.queries,
            keys=self.keys or other.keys,
            written_out=self.written_out or other.written_out,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The static part of a call. `offset` is None where it is traced, and then among the inputs."""

    causal: bool
    window: int | None
    softcap: float | None
    scale: float
    offset: int | None
    blocks: Blocks = Blocks()


class Inputs(NamedTuple):
    q: Float[Array, "B L H K"]
    k: Float[Array, "B S J K"]
    v: Float[Array, "B S J V"]
    bias: Float[Array, "1|B 1|H 1|L 1|S"] | None = None
    segment_ids: Int[Array, "B L"] | None = None
    key_segment_ids: Int[Array, "B S"] | None = None
    offset: Int[Array, ""] | None = None


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of scores and sums: float32, or float64 for float64 inputs."""
    return jnp.promote_types(dtype, jnp.float32)


def seen_by_place(options: Options, distance: Int[Array, "L S"]) -> Bool[Array, "L S"] | None:
    """Return which keys are seen by their distance behind the query, or None where all are."""
    limits = []
    if options.causal:
        limits.append(distance >= 0)
    if options.window is not None:
        limits.append(distance < options.window)
        if not options.causal:
            limits.append(distance > -options.window)
    return jax.tree.reduce(jnp.logical_and, limits) if limits else None
