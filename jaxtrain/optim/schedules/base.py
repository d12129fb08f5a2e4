"""Learning-rate schedules: optax schedules of the number of updates made.

Every schedule warms up linearly from 0 over `warmup_steps`, and spans the steps that it is built for. A warm-up longer
than those is an error.
"""

from abc import abstractmethod

import optax

from jaxtrain.technique import Technique


class Schedule(Technique):
    """A frozen dataclass that builds a learning rate. A subclass has the fields `peak` and `warmup_steps`."""

    __slots__ = ()
    peak: float
    warmup_steps: int

    def build(self, total_steps: int) -> optax.Schedule:
        """Return the learning rate by the number of updates made, for a run of `total_steps`.

        Raises:
            ValueError: the schedule takes more steps than the run has.
        """
        if self.warmup_steps > total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} exceeds the {total_steps} steps there are: make it smaller or the "
                "run longer"
            )
        warmup = optax.linear_schedule(0.0, self.peak, max(self.warmup_steps, 1))
        return optax.join_schedules([warmup, self.after_warmup(total_steps - self.warmup_steps)], [self.warmup_steps])

    @abstractmethod
    def after_warmup(self, steps: int) -> optax.Schedule:
        """Return the learning rate by the number of updates since the warm-up, of which there are `steps`."""
