"""The base class of schedules, and the two rules about microbatches that several share."""

from abc import abstractmethod
from typing import Self

from jaxtrain.pipeline.placement import nearest, require_room
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.table import Table
from jaxtrain.technique import Technique


class Schedule(Technique):
    """A frozen dataclass of parameters that writes the table for a number of stages and microbatches."""

    __slots__ = ()

    @abstractmethod
    def table(self, stages: int, microbatches: int) -> Table:
        """Return the table.

        Raises:
            ValueError: the numbers do not fit the schedule; with the rule.
        """

    def size(self) -> tuple[int, int] | None:
        """Return the one number of stages and of microbatches that the schedule has; None if it has many."""
        return None

    def write(self, stages: int, microbatches: int) -> Table:
        """Return the table, unless it would be too large."""
        require_room(stages=stages, microbatches=microbatches)
        return self.table(stages, microbatches)

    def tuned(self, costs: Costs) -> Self:
        """Return the schedule for these costs of a whole stage. Most have one order for all costs."""
        return self


def require_multiple(microbatches: int, factor: int, reason: str) -> None:
    """Raise unless the microbatches come in groups of `factor`."""
    if microbatches < 1 or microbatches % factor:
        around = nearest(max(microbatches, 0), factor)
        raise ValueError(f"microbatches={microbatches} must be a multiple of {factor} ({reason}); nearest {around}")


def require_at_least(microbatches: int, smallest: int, reason: str) -> None:
    """Raise if there are too few microbatches."""
    if microbatches < smallest:
        raise ValueError(f"microbatches={microbatches} must be at least {smallest} ({reason}); nearest {smallest}")
