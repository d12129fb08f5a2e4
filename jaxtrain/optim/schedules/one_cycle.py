"""The 1cycle policy. Smith and Topin (2017), arXiv:1708.07120; with momentum, Smith (2018), arXiv:1803.09820.

The rate rises in a straight line from `first_ratio` of the peak, falls back to it, and in the last `final_steps` on to
`final_ratio`: `optax.linear_onecycle_schedule`, its parts given in steps. The momentum falls and rises as the rate
rises and falls, and stays high in the last part. Bias corrections are those of the momentum at the step, as in
`torch.optim.lr_scheduler.OneCycleLR`.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle(Schedule):
    """Up to a high peak and down again, momentum the other way, then far down. `least_momentum=None` leaves that."""

    peak: float
    warmup_steps: int
    final_steps: int
    first_ratio: float = 0.04
    final_ratio: float = 4e-6
    least_momentum: float | None = 0.85
    most_momentum: float = 0.95
    paper: ClassVar[str] = "arXiv:1708.07120"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps", "final_steps")
        check_share(self, "first_ratio", "final_ratio")
        check_decay(self, "most_momentum")
        if self.least_momentum is not None and not 0 <= self.least_momentum <= self.most_momentum:
            raise ValueError(
                f"least_momentum={self.least_momentum}: must be from 0 to most_momentum={self.most_momentum}, or None "
                "for the optimizer's own"
            )

    @property
    def begin(self) -> float:
        return self.peak * self.first_ratio

    def after_warmup(self, steps: int) -> optax.Schedule:
        down = self.stable_steps(steps, self.final_steps, "final_steps")
        fall = optax.linear_schedule(self.peak, self.begin, max(down, 1))
        end = optax.linear_schedule(self.begin, self.peak * self.final_ratio, max(self.final_steps, 1))
        return optax.join_schedules([fall, end], [down])

    def momentum(self, total_steps: int) -> optax.Schedule | None:
        if self.least_momentum is None:
            return None
        up, most, least = self.warmup_steps, self.most_momentum, self.least_momentum
        down = total_steps - up - self.final_steps
        fall, rise = optax.linear_schedule(most, least, max(up, 1)), optax.linear_schedule(least, most, max(down, 1))
        return optax.join_schedules([fall, rise], [up])
