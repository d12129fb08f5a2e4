"""A straight line down."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_not_negative, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(Schedule):
    """Warm up, then a straight line down to `final_ratio` of the peak."""

    peak: float
    warmup_steps: int = 0
    final_ratio: float = 0.0
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")
        check_share(self, "final_ratio")

    def after_warmup(self, steps: int) -> optax.Schedule:
        return optax.linear_schedule(self.peak, self.peak * self.final_ratio, max(steps, 1))
