"""The inputs of every implementation of attention, and the definition of the mask.

Letters: B batch, L queries, S keys, H query heads, J key heads, K key dim, V value dim. Query i is at position
`offset + i` on the keys' axis.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # the scores of keys that a query does not see
LOWEST = -5e29  # below the maximum over the keys that a query sees, so that exp(MASKED - maximum) is 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """How much is computed at once: rows of the batch, queries, keys. None: the implementation chooses.

    `written_out` is the most blocks of queries that `xla` unrolls; more become a loop.
    """

    rows: int | None = None
    queries: int | None = None
    keys: int | None = None
    written_out: int | None = None

    def __post_init__(self):
        for name in ("rows", "queries", "keys", "written_out"):
            if (size := getattr(self, name)) is not None and size < 1:
                raise ValueError(f"{name}={size}: a block holds at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The static part of a call. If the offset is traced, `offset` is None here and among the inputs instead.

    `slopes` has one number for each query head.
    """

    causal: bool
    window: int | None
    softcap: float | None
    scale: float
    offset: int | None
    slopes: tuple[float, ...] | None = None
    blocks: Blocks = Blocks()


class Inputs(NamedTuple):
    q: Float[Array, "B L H K"]
    k: Float[Array, "B S J K"]
    v: Float[Array, "B S J V"]
    bias: Float[Array, "#B #H #L #S"] | None = None
    segment_ids: Int[Array, "B L"] | None = None
    key_segment_ids: Int[Array, "B S"] | None = None
    offset: Int[Array, ""] | None = None

    @property
    def segments(self) -> tuple[Int[Array, "B L"], Int[Array, "B S"]] | None:
        """The segment ids of queries and of keys, if there are any."""
        if self.segment_ids is None or self.key_segment_ids is None:
            return None
        return self.segment_ids, self.key_segment_ids


def offset_of(x: Inputs, options: Options) -> int | Int[Array, ""]:
    """Return the position of the first query on the keys' axis, traced or not."""
    offset = options.offset if x.offset is None else x.offset
    assert offset is not None, "the offset is neither static nor among the inputs"
    return offset


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of scores and sums: float32, or float64 for float64 inputs."""
    return jnp.promote_types(dtype, jnp.float32)


def seen_by_position(options: Options, distance: Int[Array, "L S"]) -> Bool[Array, "L S"] | None:
    """Return which keys are seen, by their distance behind the query, or None if all are."""
    limits = []
    if options.causal:
        limits.append(distance >= 0)
    if options.window is not None:
        limits.append(distance < options.window)
        if not options.causal:
            limits.append(distance > -options.window)
    return jax.tree.reduce(jnp.logical_and, limits) if limits else None
