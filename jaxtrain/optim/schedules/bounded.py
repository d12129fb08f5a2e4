"""A cool-down as long as the bound of the last iterate asks for. Schaipp et al. (2025), arXiv:2501.18965.

The least bound of a constant rate with a linear cool-down falls as the cool-down grows, fast at first. It is sized for
at most `SIZED` steps, and scaled to those of the run.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.last_iterate import sized_cooldown
from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_not_negative, check_positive

SIZED = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundedDecay(Schedule):
    """Constant, then a linear cool-down, the shortest whose bound is a share of `excess` above that of the longest."""

    peak: float
    warmup_steps: int = 0
    excess: float = 0.05
    paper: ClassVar[str] = "arXiv:2501.18965"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")
        check_positive(self, "excess")

    def after_warmup(self, steps: int) -> optax.Schedule:
        if not steps:
            return optax.constant_schedule(self.peak)
        sized = min(steps, SIZED)
        decay_steps = math.ceil(sized_cooldown(sized, excess=self.excess) * steps / sized)
        decay = optax.linear_schedule(self.peak, 0.0, decay_steps)
        return optax.join_schedules([optax.constant_schedule(self.peak), decay], [steps - decay_steps])
