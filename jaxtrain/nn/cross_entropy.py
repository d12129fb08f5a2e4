"""Cross-entropy of hidden states and their targets, for a whole vocabulary or one tile of it after another.

Two numbers a token are enough: the log-sum-exp of its logits and the logit of its target. Taken tile by tile, only the
rows of one tile of the head are whole and only their logits exist; the backward pass computes them once more (Wijmans
et al., 2025, arXiv:2411.09009, here in plain XLA, and without its skipping of small gradients).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.axes import Axes
from jaxtrain.mesh import axis_size, constrain, gather, narrow_gradients
from jaxtrain.nn.embed import project


class CrossEntropy(NamedTuple):
    """-log softmax(logits)[target] and log-sum-exp(logits), both a token, float32."""

    nll: Float[Array, "B L"]
    log_z: Float[Array, "B L"]


class HeadConfig(NamedTuple):
    """How hidden states become logits: the facts about the table, the compute dtype, the soft cap."""

    axes: Axes
    dtype: str
    softcap: float | None


def logits_of(x: Float[Array, "B L D"], table: Float[Array, "W D"], config: HeadConfig) -> Float[Array, "B L W"]:
    """Return float32 logits; `table` as it is stored, in shards."""
    logits = project(x, gather(table, config.axes, config.dtype))
    if config.softcap is not None:
        logits = config.softcap * jnp.tanh(logits / config.softcap)
    return constrain(logits, "batch", "length", "vocab")


def cross_entropy(
    x: Float[Array, "B L D"],
    table: Float[Array, "W D"],
    targets: Int[Array, "B L"],
    config: HeadConfig,
    *,
    tile: int | None,
) -> CrossEntropy:
    """Return the cross-entropy of every token, with logits of at most `tile` rows of the head at once, None for all.

    Tiles are equal, and of every device's own rows where the vocabulary is split: a vocabulary whose size has no
    suitable divisor takes smaller ones than asked.
    """
    shards = axis_size("vocab") if table.shape[0] % axis_size("vocab") == 0 else 1
    count = tiles(table.shape[0] // shards, tile)
    if count == 1:
        log_z, gold = _log_z_and_gold(logits_of(x, table, config), targets, jnp.arange(table.shape[0]))
        return CrossEntropy(log_z - gold, log_z)

    def split(rows):
        """[W, ...] -> [count, W / count, ...]: a tile is a run of rows of every shard."""
        by_shard = rows.reshape(shards, count, -1, *rows.shape[1:])
        return jnp.moveaxis(by_shard, 1, 0).reshape(count, -1, *rows.shape[1:])

    def one(carry, rows):
        table, ids = rows
        log_z, gold = _log_z_and_gold(logits_of(wide.astype(x.dtype), table, config), targets, ids)
        return (jnp.logaddexp(carry[0], log_z), carry[1] + gold), None

    wide = x.astype(jnp.float32)  # so that the gradients of all tiles are summed in float32
    nothing = jnp.full(targets.shape, -jnp.inf, jnp.float32), jnp.zeros(targets.shape, jnp.float32)
    rows = narrow_gradients(split(table), config.axes, config.dtype), split(jnp.arange(table.shape[0]))
    (log_z, gold), _ = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), nothing, rows)
    return CrossEntropy(log_z - gold, log_z)


def tiles(rows: int, most: int | None) -> int:
    """Return the smallest number of equal tiles of at most so many rows."""
    fewest = 1 if most is None else math.ceil(rows / most)
    return next(count for count in range(fewest, rows + 1) if rows % count == 0)


def _log_z_and_gold(logits: Float[Array, "B L W"], targets: Int[Array, "B L"], ids: Int[Array, " W"]):
    """Return the log-sum-exp of the logits, and the target's logit, 0 where it is not among `ids`."""
    # A sum over the vocabulary, not a gather from it: every device reads only its own part of a split vocabulary.
    is_target = targets[..., None] == ids[None, None]
    return jax.nn.logsumexp(logits, axis=-1), jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
