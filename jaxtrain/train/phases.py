"""Phases. A run is a list of them, each with its steps, batch size, sequence length, data, rate, mesh, objective."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxtrain.data.config import DataConfig
from jaxtrain.mesh import MeshConfig
from jaxtrain.objectives.base import Objective
from jaxtrain.optim.schedules import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """`batch_size` counts sequences over all devices. A field that is None is the run's.

    A phase's own `learning_rate` starts counting at the phase's first step.
    """

    steps: int
    batch_size: int
    sequence_length: int
    data: DataConfig | None = None
    learning_rate: Schedule | None = None
    mesh: MeshConfig | None = None
    objective: Objective | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

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


def learning_rate(span: Span, schedule: Schedule, *, total_steps: int) -> optax.Schedule:
    """Return the rate of a phase: its own from its first step on, or the run's `schedule` over all steps of the run."""
    phase = span.phase
    if phase.learning_rate is None:
        return schedule.build(total_steps)
    rate = phase.learning_rate.build(phase.steps)
    return lambda count: rate(jnp.maximum(count - span.first, 0))  # less than the steps by those that were skipped


def total_steps(phases: tuple[Phase, ...]) -> int:
    return sum(phase.steps for phase in phases)
