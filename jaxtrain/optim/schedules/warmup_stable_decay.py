"""A constant rate with a straight line down at the end. Hu et al. (2024), arXiv:2404.06395."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_not_negative, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStableDecay(Schedule):
    """Warm up, stay at the peak, and fall in a straight line over the last `decay_steps`.

    Hu et al. (2024), arXiv:2404.06395; the linear tail is that of Hägele et al. (2024), arXiv:2405.18392.
    """

    peak: float
    decay_steps: int
    warmup_steps: int = 0
    final_ratio: float = 0.0
    paper: ClassVar[str] = "arXiv:2404.06395"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps", "decay_steps")
        check_share(self, "final_ratio")

    def after_warmup(self, steps: int) -> optax.Schedule:
        stable = self.stable_steps(steps, self.decay_steps)
        decay = optax.linear_schedule(self.peak, self.peak * self.final_ratio, max(self.decay_steps, 1))
        return optax.join_schedules([optax.constant_schedule(self.peak), decay], [stable])
