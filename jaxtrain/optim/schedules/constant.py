"""A constant learning rate."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_not_negative


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Schedule):
    """Warm up, then stay at the peak."""

    peak: float
    warmup_steps: int = 0
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")

    def after_warmup(self, steps: int) -> optax.Schedule:
        return optax.constant_schedule(self.peak)
