"""Phases. A run is a list of them, each with its steps, batch size, sequence length, data, rate, mesh, objective."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxtrain.data.config import DataConfig
from jaxtrain.mesh import MeshConfig
from jaxtrain.objectives.base import Objective
from jaxtrain.optim.schedules.base import Batches, Schedule
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """`batch_size` counts sequences over all devices. A field that is None is the run's.

    A phase's own `learning_rate` starts counting at the phase's first step. `rate_factor` multiplies it, or the run's.
    """

    steps: int
    batch_size: int
    sequence_length: int
    data: DataConfig | None = None
    learning_rate: Schedule | None = None
    rate_factor: float = 1.0
    mesh: MeshConfig | None = None
    objective: Objective | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        check_positive(self, "rate_factor")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


class Span(NamedTuple):
    """A phase and the steps of the run it covers: first <= step < end."""

    number: int  # of the phase, from 0
    phase: Phase
    first: int
    end: int


def spans(phases: tuple[Phase, ...]) -> Iterator[Span]:
    first = 0
    for number, phase in enumerate(phases):
        yield Span(number, phase, first, first + phase.steps)
        first += phase.steps


def remaining(phases: tuple[Phase, ...], step: int) -> Iterator[Span]:
    """Return the phases that are not over at a step; the last one when all are over."""
    *_, last = spans(phases)
    return (span for span in spans(phases) if step < span.end or (span == last and step >= last.end))


def learning_rate(span: Span, schedule: Schedule, phases: tuple[Phase, ...]) -> optax.Schedule:
    """Return the rate of a phase: its own from its first step on, or the run's `schedule` over all steps of the run."""
    phase = span.phase
    if phase.learning_rate is None:
        rate = schedule.build(total_steps(phases), Batches(phase.batch_size, tokens_before(phases)))
    else:
        own = phase.learning_rate.build(phase.steps, Batches(phase.batch_size, tokens_before((phase,))))
        rate = _from_first(span, own)
    return rate if phase.rate_factor == 1 else lambda count: phase.rate_factor * rate(count)


def momentum(span: Span, schedule: Schedule, phases: tuple[Phase, ...]) -> optax.Schedule | None:
    """Return the momentum that the schedule of a phase gives, counted as its rate is; None if it gives none."""
    if span.phase.learning_rate is None:
        return schedule.momentum(total_steps(phases))
    own = span.phase.learning_rate.momentum(span.phase.steps)
    return own and _from_first(span, own)


def _from_first(span: Span, own: optax.Schedule) -> optax.Schedule:
    return lambda count: own(jnp.maximum(count - span.first, 0))  # less than the steps by those that were skipped


def tokens_before(phases: tuple[Phase, ...]) -> optax.Schedule:
    """Return the tokens that were read before an update, by the number of updates made."""

    def tokens(count):
        made = [
            jnp.clip(count - span.first, 0, span.phase.steps) * float(span.phase.tokens_per_step)
            for span in spans(phases)
        ]
        return sum(made)

    return tokens


def total_steps(phases: tuple[Phase, ...]) -> int:
    return sum(phase.steps for phase in phases)
