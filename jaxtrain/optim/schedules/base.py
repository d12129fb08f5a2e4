"""Learning-rate schedules: optax schedules of the number of updates made.

Every schedule warms up in a straight line over `warmup_steps`, and spans the steps that it is built for. A warm-up
longer than those is an error.
"""

from abc import abstractmethod
from typing import NamedTuple

import optax

from jaxtrain.technique import Technique


class Batches(NamedTuple):
    """The batches of the phase that a rate is for: their rows, and the tokens read before, by updates made."""

    rows: int
    tokens: optax.Schedule


class Schedule(Technique):
    """A frozen dataclass that builds a learning rate. A subclass has the fields `peak` and `warmup_steps`."""

    __slots__ = ()
    peak: float
    warmup_steps: int

    @property
    def begin(self) -> float | None:
        """The rate that the warm-up begins at."""
        return 0.0

    def build(self, total_steps: int, batches: Batches | None = None) -> optax.Schedule:
        """Return the learning rate by the number of updates made, for a run of `total_steps`.

        Raises:
            ValueError: the schedule takes more steps than the run has.
        """
        if self.warmup_steps > total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} exceeds the {total_steps} steps there are: make it smaller or the "
                "run longer"
            )
        warmup = optax.linear_schedule(self.begin, self.peak, max(self.warmup_steps, 1))
        return optax.join_schedules([warmup, self.after_warmup(total_steps - self.warmup_steps)], [self.warmup_steps])

    @abstractmethod
    def after_warmup(self, steps: int) -> optax.Schedule:
        """Return the learning rate by the number of updates since the warm-up, of which there are `steps`."""

    def momentum(self, total_steps: int) -> optax.Schedule | None:
        """Return the optimizer's decay of the first moment by updates made; None to leave the optimizer its own."""
        return None

    def stable_steps(self, steps: int, decay_steps: int, name: str = "decay_steps") -> int:
        """Return the steps between the warm-up and a decay that ends the `steps` behind the warm-up.

        Raises:
            ValueError: there are fewer steps than the two take.
        """
        if decay_steps > steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and {name}={decay_steps} exceed the {steps + self.warmup_steps} "
                "steps there are: make them smaller or the run longer"
            )
        return steps - decay_steps
