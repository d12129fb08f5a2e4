"""The objective over the validation split: always the same batches in the same order, whatever the run's seed."""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxtrain.data import DataConfig, Rows, batches_of, open_rows
from jaxtrain.data.store import TokenStore
from jaxtrain.objectives.base import Objective, Sums, Terms
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.train.feed import Layout

SEED = 0
VALIDATION_LOSS = "validation_loss"  # among the numbers of a run


def validation_rows(data: DataConfig, *, sequence_length: int, stores: Sequence[TokenStore] | None = None) -> Rows:
    """Return one pass over the validation rows: of `stores`, opened before, or else of the text as it is now."""
    return open_rows(data, split="validation", sequence_length=sequence_length, seed=SEED, num_epochs=1, stores=stores)


def perplexity(nats: float) -> float:
    """Return e^nats, or infinity where a float cannot hold it, as of a run that diverged."""
    return math.inf if nats > math.log(sys.float_info.max) else math.exp(nats)


class Evaluation(NamedTuple):
    """The mean of the term that an objective is evaluated by, in nats a token, and its denominator."""

    loss: float
    weight: float


def evaluate(
    step: Callable[[ModelState, Batch], tuple[Terms, Sums]],
    objective: Objective,
    model: ModelState,
    rows: Rows,
    *,
    batch_size: int,
    batches: int | None,
    mesh: Mesh,
) -> Evaluation:
    """Evaluate over the first `batches` batches of `validation_rows`, or over all of them."""
    layout = Layout(batch_size, rows.sequence_length, mesh)
    iterator = batches_of(rows, batch_size=batch_size, rows=layout.rows)
    with jax.set_mesh(mesh):
        taken = itertools.islice(iterator, batches and min(batches, sys.maxsize))
        parts = [step(model, layout.globalise(batch)) for batch in taken]
    return mean_of(objective, parts)


def mean_of(objective: Objective, parts: Sequence[tuple[Terms, Sums]]) -> Evaluation:
    """Return the mean of the evaluated term over batches, from the sums of each."""
    terms, weights = jax.tree.map(lambda *values: sum(map(float, values)), *parts)
    weight = weights[objective.evaluated]
    return Evaluation((terms.minimised | terms.reported)[objective.evaluated] / weight, weight)
