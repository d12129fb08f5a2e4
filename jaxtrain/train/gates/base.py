"""The base class of gates: the weights of experts that were trained apart, for every next token of a text.

The mixture's probability of a token is the sum of the experts' probabilities times their weights. A weight depends on
the tokens of the document up to that place, and on nothing behind it, so the mixture is a language model.
"""

from abc import abstractmethod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.shapes import Batch
from jaxtrain.technique import Technique


class Gate(Technique):
    """A frozen dataclass that weights the experts of an ensemble, which is part of no expert's training."""

    __slots__ = ()

    @abstractmethod
    def check(self, experts: int, tokenizer: str) -> None:
        """Raise ValueError where it cannot weight so many experts, or knows other tokens than this identity's."""

    @abstractmethod
    def log_weights(self, batch: Batch, log_probs: Float[Array, "M B L"]) -> Float[Array, "M B L"]:
        """Return the logarithm of each expert's weight for each target. The weights of a target add to 1.

        `log_probs` are what each expert says of each target. Those at a place and behind it may not be used there.
        """


def up_to(values: Float[Array, "*M B L"], segment_ids: Int[Array, "B L"]) -> Float[Array, "*M B L"]:
    """Return the sum of the values of a document up to and with each place."""
    is_first = jnp.concatenate([jnp.ones_like(segment_ids[:, :1]), jnp.diff(segment_ids, axis=1)], axis=1) != 0

    def added(left, right):
        return jnp.where(right[1], right[0], left[0] + right[0]), left[1] | right[1]

    # Not a difference of sums over the row, which would round the sums of a short document behind long ones.
    begins = jnp.broadcast_to(is_first, values.shape)
    return jax.lax.associative_scan(added, (values, begins), axis=-1)[0]
