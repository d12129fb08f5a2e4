"""The head: from the last hidden states to logits, or to the cross-entropy of targets without all of the logits."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtrain_kernels.cross_entropy import CrossEntropy, cross_entropy, logits_of, project
from jaxtyping import Array, Float, Int

from jaxtrain.axes import Axes
from jaxtrain.fully_sharded import gather, narrow_gradients
from jaxtrain.sharding import axis_size, constrain

TILE = 16_384  # words of the vocabulary whose logits a device computes at a time


class Head(NamedTuple):
    """Final norm, product with the table of the vocabulary, soft cap. The table may be that of the embedding.

    A cross-entropy gathers the table, and computes its logits, at most `tile` rows a device at a time, or all of them
    where there are no more than two tiles.
    """

    norm: Callable
    table: Float[Array, "W D"]  # as it is stored, in shards
    axes: Axes  # the facts about it
    dtype: str
    softcap: float | None
    tile: int = TILE

    def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L W"]:
        """Return float32 logits."""
        return logits_of(self._normed(x), self.table, self._project, self.softcap)

    def cross_entropy(self, x: Float[Array, "B L D"], targets: Int[Array, "B L"]) -> CrossEntropy:
        """Return -log softmax(logits)[target] and log-sum-exp(logits) of every token, float32."""
        shards = axis_size("vocab", len(self.table))
        own = len(self.table) // shards
        return cross_entropy(
            self._normed(x),
            narrow_gradients(self.table, self.axes, self.dtype),
            targets,
            softcap=self.softcap,
            tile=self.tile if own > 2 * self.tile else own,  # in two tiles more would be gathered than is saved
            shards=shards,
            project=self._project,
        )

    def _normed(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return constrain(self.norm(x), "batch", "length", None)

    @property
    def _project(self) -> Callable:
        return functools.partial(_project, self.axes, self.dtype)


def _project(axes: Axes, dtype: str, x: Float[Array, "B L D"], rows: Float[Array, "C D"]) -> Float[Array, "B L C"]:
    """Return x rows^T of rows of the table as they are stored, in shards."""
    return constrain(project(x, gather(rows, axes, dtype), _as_between_layers), "batch", "length", "vocab")


def _as_between_layers(dx: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    return constrain(dx, "batch", "residual_length", None)
