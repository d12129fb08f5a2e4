"""The base class of objectives. An objective is a sum of terms, each a sum over a batch divided by its denominator.

A denominator depends on the data alone: the number of loss tokens, real tokens, pairs or sequences. It is summed over
the whole batch before anything is differentiated. So every part of a batch (a device's rows, a microbatch) gives its
contribution to the mean, contributions add up exactly, and a loss mask does not change the share of another term.
"""

from abc import abstractmethod
from collections.abc import Collection
from typing import ClassVar, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.layer import Keys, Out
from jaxtrain.nn.layer import Sums as LayerSums
from jaxtrain.shapes import Batch
from jaxtrain.technique import Technique

Sums = dict[str, Float[Array, ""]]  # by the name of the term, float32: added over microbatches, stages and devices


class Terms(NamedTuple):
    """The sums of terms over some rows. The loss is the sum of the means of `minimised`; `reported` are logged with it.

    `layers` are the sums of the layers that ran. The objective leaves them empty, and `Loss` sets them. Their terms are
    added to the loss, too, each divided by the number of real tokens of the batch.
    """

    minimised: Sums
    reported: Sums
    layers: LayerSums = LayerSums()


class Model(Protocol):
    """What an objective may read of the decoder that it gets."""

    def hidden(self, batch: Batch, keys: Keys | None = None, taps: Collection[str] = ()) -> Out:
        """Return the hidden states that the head reads, and the taps."""

    @property
    def head(self) -> Head:
        """The head, which makes logits or cross-entropies of hidden states."""

    @property
    def teacher(self) -> "Taught | None":
        """The frozen model that teaches this one, if there is one."""


class Taught(Protocol):
    """What an objective may read of a teacher."""

    def hidden(self, batch: Batch) -> Out:
        """Return what the head reads of every token."""

    @property
    def head(self) -> "Logits":
        """The head, which makes logits of that."""


class Logits(Protocol):
    """A head that gives logits alone."""

    def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L W"]:
        """Return float32 logits."""


class Objective(Technique):
    """A frozen dataclass that gives the terms of a batch and their denominators.

    A call returns the terms that are minimised and those that are only reported, each under a name of its own, and
    `weights` returns the denominator of every one of them. Evaluation, and the loss by which checkpoints are judged,
    are the mean of the term `evaluated`, in nats a token: one of the terms has that name, in each call. It is taken
    without noise (`keys` is None) and without what layers add. `check_terms` holds an objective to this.
    """

    __slots__ = ()
    evaluated: ClassVar[str] = "nll"
    reads_teacher: ClassVar[bool] = True  # where the model has one

    @property
    def top_k(self) -> int | None:
        """The number of a teacher's likeliest words that it reads; None where it reads all, or asks no teacher."""
        return None

    @abstractmethod
    def weights(self, batch: Batch) -> Sums:
        """Return the denominator of every term, summed over a batch. It depends on the data, not on the model."""

    def prepared(self, model: Model, batch: Batch) -> Batch:
        """Return the whole batch with the hints that the terms of its rows read. No gradient flows through them."""
        return batch

    def check(self, model: DecoderConfig) -> None:
        """Raise ValueError where a model cannot serve this objective."""

    @abstractmethod
    def __call__(self, model: Model, batch: Batch, keys: Keys | None) -> Terms:
        """Return the sum of every term over the rows of a batch."""

    def evaluation(self, model: Model, batch: Batch) -> Terms:
        """Return the sums of a batch of the validation split, the one that `evaluated` names among them."""
        return self(model, self.prepared(model, batch), None)


def check_terms(objective: Objective, terms: Terms, weights: Sums) -> None:
    """Raise ValueError where an objective does not return what its contract says."""
    kind, names = type(objective).__name__, {*terms.minimised, *terms.reported}
    if both := terms.minimised.keys() & terms.reported.keys():
        raise ValueError(f"objective={kind}: the term {min(both)!r} is both minimised and reported; give it one place")
    if lacking := names - weights.keys():
        raise ValueError(f"objective={kind}: weights() lacks the term {min(lacking)!r}; return a denominator for each")
    if objective.evaluated not in names:
        raise ValueError(
            f"objective={kind}: it returns {', '.join(sorted(names)) or 'no term'} and not {objective.evaluated!r}, by "
            "which it is evaluated; report that term, or name another one in `evaluated`"
        )


def means(sums: Sums, weights: Sums) -> Sums:
    """Return each sum divided by its denominator. A term over nothing is 0."""
    return {name: value / jnp.where(weights[name] > 0, weights[name], 1.0) for name, value in sums.items()}
