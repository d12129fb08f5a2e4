"""The base class of attention masks: which keys of its document a query sees."""

from abc import abstractmethod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxtrain.ranges import COUNTED
from jaxtrain.technique import Technique


class Span(NamedTuple):
    """The keys that kernels look at: up to the query, or both ways; in a window of so many on a side, its own too."""

    causal: bool
    window: int | None = None


class Mask(Technique):
    """A frozen dataclass that says which keys of its document a query sees, by their distance behind the query.

    Kernels skip the keys out of its `span`. Where `hidden` returns something, they add -inf to the scores of those
    keys: an array [length, length] in memory, which the whole layer shares.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def span(self) -> Span:
        """The span of keys out of which none is seen."""

    def hidden(self, distance: Int[Array, "*S"]) -> Bool[Array, "*S"] | None:
        """Return which keys of the span are not seen, or None where all are. Keys ahead have negative distances."""
        return None

    @property
    def has_holes(self) -> bool:
        """Whether some keys of the span are not seen."""
        return jax.eval_shape(self.hidden, jax.ShapeDtypeStruct((1,), jnp.int32)) is not None

    def seen(self, distance: Int[Array, "*S"]) -> Bool[Array, "*S"]:
        """Return which keys are seen."""
        causal, window = self.span
        within = distance >= 0 if causal else jnp.ones_like(distance, bool)
        if window is not None:
            within &= (distance if causal else jnp.abs(distance)) < window
        hidden = self.hidden(distance)
        return within if hidden is None else within & ~hidden

    def mean_keys(self, length: int) -> float:
        """Return the mean number of keys that a query of a sequence of this length sees."""
        if self.has_holes:
            distance = np.arange(1 - length, length)
            pairs = length - np.abs(distance)  # at this distance, in the whole sequence
            return float(np.sum(pairs * np.asarray(self.seen(jnp.asarray(distance)))) / length)
        causal, window = self.span
        window = min(window or length, length)
        behind = window - window * (window - 1) / (2 * length)
        return behind if causal else 2 * behind - 1


def check_window(window: int) -> None:
    """Raise ValueError for a window of no keys, or of more than positions count."""
    if not 1 <= window < COUNTED:
        raise ValueError(f"window={window}: must be from 1 to {COUNTED - 1} keys")
