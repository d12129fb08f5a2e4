"""The head: from the last hidden states to logits, or to cross-entropies without all logits in memory at once."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtrain_kernels.cross_entropy import CrossEntropy, cross_entropy, logits_of, project
from jaxtyping import Array, Float, Int, Shaped

from jaxtrain.axes import Axes
from jaxtrain.fully_sharded import gather, narrow_gradients
from jaxtrain.sharding import axis_size, constrain

LOWEST = -1e30  # the logit of a row that is no word
TILE = 16_384  # words of the vocabulary whose logits a device computes at a time


class Head(NamedTuple):
    """Logits z = softcap * tanh((scale * norm(x) table^T + bias) / softcap). The table may be that of the embedding.

    A cross-entropy gathers the table and computes the logits a tile at a time: `tile` rows of the table on each device,
    or all rows of a device where they make no more than two tiles.
    """

    norm: Callable
    table: Shaped[Array, "W D"]  # as it is stored, in shards
    axes: Axes  # the facts about it
    dtype: str
    softcap: float | None = None
    tile: int = TILE
    words: int | None = None  # the rows of the table that are words; the others pad it
    scale: float = 1.0
    bias: Float[Array, " W"] | None = None

    def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L W"]:
        """Return float32 logits."""
        logits = logits_of(self._normed(x), self.table, self._project, self.softcap, self.bias)
        return logits if self.words is None else jnp.where(jnp.arange(len(self.table)) < self.words, logits, LOWEST)

    def cross_entropy(self, x: Float[Array, "B L D"], targets: Int[Array, "B L"]) -> CrossEntropy:
        """Return -log softmax(logits)[target] and log-sum-exp(logits) of every token, float32."""
        shards = axis_size("vocab", len(self.table))
        rows = len(self.table) // shards  # of each device
        return cross_entropy(
            self._normed(x),
            narrow_gradients(self.table, self.axes, self.dtype),
            targets,
            bias=self.bias,
            softcap=self.softcap,
            words=self.words,
            tile=self.tile if rows > 2 * self.tile else rows,  # two tiles would gather more than they save
            shards=shards,
            project=self._project,
        )

    def _normed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Return normalised hidden states. They, not the far larger logits, are multiplied by the scale."""
        x = constrain(self.norm(x), "batch", "length", None)
        return x if self.scale == 1.0 else x * self.scale

    @property
    def _project(self) -> Callable:
        return functools.partial(_project, self.axes, self.dtype)


def _project(axes: Axes, dtype: str, x: Float[Array, "B L D"], rows: Shaped[Array, "C D"]) -> Float[Array, "B L C"]:
    """Return x rows^T for rows of the table, which are stored in shards."""
    return constrain(project(x, gather(rows, axes, dtype), _as_between_layers), "batch", "length", "vocab")


def _as_between_layers(dx: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    return constrain(dx, "batch", "residual_length", None)
