"""The base class of schedules that begin at the rate with which another run has ended."""

import optax

from jaxtrain.optim.schedules.base import Batches, Schedule


class Continuing(Schedule):
    """A schedule with the field `begin`: the last rate of the run whose weights this one begins with.

    A configuration file with `initial=@FromRun(path=...)` has it from that run where it is None.
    """

    __slots__ = ()

    def build(self, total_steps: int, batches: Batches | None = None) -> optax.Schedule:
        if self.begin is None:
            raise ValueError(
                "begin=None: the rate that the run before ended with is not known; give initial=@FromRun(path=...), in "
                "Python begin=FromRun(path=...).last_rate(), or a number"
            )
        return Schedule.build(self, total_steps, batches)
