"""What an objective is: a sum of terms, each the mean of something over what a batch holds of it.

What a term is divided by depends on the data alone: loss tokens, real tokens, pairs, sequences. It is summed over the
whole batch before anything is differentiated, so that every part of a batch (a device's rows, a microbatch) gives its
contribution to the mean, contributions add up exactly, and a loss mask does not change the share of another term.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.models.decoder import Decoder
from jaxtrain.nn.layer import Keys
from jaxtrain.nn.layer import Sums as LayerSums
from jaxtrain.shapes import Batch
from jaxtrain.technique import Technique

Sums = dict[str, Float[Array, ""]]  # by term, float32: added over microbatches, stages and devices


class Terms(NamedTuple):
    """Sums over the rows at hand. The loss adds the means of the `minimised`; the `reported` are shown beside it.

    `layers` are the sums of the layers that ran, which are put there for the objective. Their terms are added to the
    loss, too, each divided by the real tokens of the batch.
    """

    minimised: Sums
    reported: Sums
    layers: LayerSums = LayerSums()


class Objective(Technique):
    """A frozen dataclass that gives the terms of a batch and what each is divided by.

    Evaluation reports the mean of the term `evaluated`, in nats a token.
    """

    __slots__ = ()
    evaluated: ClassVar[str] = "nll"

    @abstractmethod
    def weights(self, batch: Batch) -> Sums:
        """Return what every term is divided by, summed over a batch. It reads the data and no model."""

    @abstractmethod
    def __call__(self, model: Decoder, batch: Batch, keys: Keys | None) -> Terms:
        """Return the sum of every term over the rows of a batch."""


def means(sums: Sums, weights: Sums) -> Sums:
    """Return every term's share of its mean; a term that nothing counts for is 0."""
    return {name: value / jnp.maximum(weights[name], 1.0) for name, value in sums.items()}
