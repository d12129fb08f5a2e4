"""Knowledge distillation. Hinton et al. (2015), arXiv:1503.02531.

The teacher runs once over the whole batch before the gradient is computed. Kept of it, for each token, is its last
hidden state, or its `top_k` greatest logits. The logits of a microbatch are whole in memory, those of the student and,
without `top_k`, of the teacher. An evaluation reports the loss of the targets and does not ask the teacher. Left out:
losses of hidden states.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.layer import Keys
from jaxtrain.objectives.base import Model, Objective, Sums, Terms
from jaxtrain.ranges import check_positive
from jaxtrain.shapes import Batch
from jaxtrain.sharding import axis_size, constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class Distill(Objective):
    """(1 - hard) T^2 KL(teacher || student) at the temperature T, and hard times the loss of the targets, nats a token.

    With `top_k` both distributions are over the words that the teacher finds likeliest, each renormalised there.
    """

    temperature: float = 2.0
    hard: float = 0.5
    top_k: int | None = None
    paper: ClassVar[str] = "arXiv:1503.02531"

    def __post_init__(self):
        check_positive(self, "temperature")
        if not 0 <= self.hard <= 1:
            raise ValueError(f"hard={self.hard}: must be from 0 to 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or None for the whole vocabulary")

    def check(self, model: DecoderConfig) -> None:
        if model.teacher is None:
            raise ValueError("objective=Distill(...): the model has no teacher; set model.teacher")
        if stored := model.teacher.given:
            [there] = stored["words"].shape
            if self.top_k is None or self.top_k > there:
                raise ValueError(
                    f"objective.top_k={self.top_k}: model.teacher has the {there} likeliest words of every token; "
                    f"set objective.top_k to at most {there}"
                )
        if self.top_k is not None and self.top_k > model.vocab_size:
            raise ValueError(f"objective.top_k={self.top_k}: model.vocab_size={model.vocab_size} has fewer words")

    def weights(self, batch: Batch) -> Sums:
        return dict.fromkeys(("soft", "hard", "nll"), jnp.sum(batch.weights))

    def prepared(self, model: Model, batch: Batch) -> Batch:
        if batch.hints:  # of a teacher whose logits are stored
            return batch._replace(hints={name: hint[..., : self.top_k] for name, hint in batch.hints.items()})
        assert model.teacher is not None, "check() refuses a model without a teacher"
        hidden_BLD = jax.lax.stop_gradient(model.teacher.hidden(batch).y)
        if self.top_k is None:
            return batch._replace(hints={"hidden": hidden_BLD})
        head, top_k = model.teacher.head, self.top_k
        logits, words = row_by_row(lambda x: jax.lax.top_k(head.logits(x), top_k), hidden_BLD)
        return batch._replace(hints={"logits": logits, "words": words})

    def __call__(self, model: Model, batch: Batch, keys: Keys | None) -> Terms:
        logits_BLW = model.head.logits(model.hidden(batch, keys).y)
        student, teacher = self._compared(model, batch, logits_BLW)
        kl_BL = divergence(student, jax.lax.stop_gradient(teacher), self.temperature)
        nll_BL = negative_log_likelihood(logits_BLW, batch.targets)
        nll, soft = (jnp.sum(of_token * batch.weights) for of_token in (nll_BL, kl_BL))
        return Terms({"soft": (1 - self.hard) * soft, "hard": self.hard * nll}, {"nll": nll})

    def evaluation(self, model: Model, batch: Batch) -> Terms:
        nll_BL, _ = model.head.cross_entropy(model.hidden(batch).y, batch.targets)
        return Terms({}, {"nll": jnp.sum(nll_BL * batch.weights)})

    def _compared(
        self, model: Model, batch: Batch, logits: Float[Array, "B L W"]
    ) -> tuple[Float[Array, "B L C"], Float[Array, "B L C"]]:
        """Return the logits of student and teacher, of all words or of the teacher's likeliest."""
        if self.top_k is None:
            assert model.teacher is not None, "check() refuses stored logits without top_k"
            words = model.head.words or logits.shape[-1]  # the rows behind them pad a table, by another number in each
            return logits[..., :words], model.teacher.head.logits(batch.hints["hidden"])[..., :words]
        return jnp.take_along_axis(logits, batch.hints["words"], axis=-1), batch.hints["logits"]


def row_by_row[Result](of_rows: Callable[[Float[Array, "B L D"]], Result], x: Float[Array, "B L D"]) -> Result:
    """Return a function of rows, of one row of each device at a time."""
    rows = math.gcd(len(x), axis_size("batch"))  # a batch that its devices do not divide is not split

    def dealt(x):
        return constrain(x.reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1), None, "batch", "length", None)

    def gathered(x):
        return constrain(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), "batch", "length", None)

    return jax.tree.map(gathered, jax.lax.map(of_rows, dealt(x)))


def divergence(
    student: Float[Array, "B L C"], teacher: Float[Array, "B L C"], temperature: float
) -> Float[Array, "B L"]:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)) of every token, float32.

    For logits of mean zero over C words and a large T its gradient is (student - teacher) / C (Hinton et al., eq. 4).
    """
    q, p = (jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1) for logits in (student, teacher))
    return temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def negative_log_likelihood(logits: Float[Array, "B L W"], targets: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Return -log softmax(logits)[target] of every token."""
    # A sum over the vocabulary, not a gather from it: every device reads only its own part of a split vocabulary.
    is_target_BLW = targets[..., None] == jnp.arange(logits.shape[-1])[None, None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(is_target_BLW, logits, 0.0), axis=-1)
