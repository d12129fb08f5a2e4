"""Warming up again for other data. Gupta et al. (2023), arXiv:2308.04014."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.continuing import Continuing
from jaxtrain.ranges import check_not_negative, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewarm(Continuing):
    """From the last rate of the run before in a straight line to the peak, then half a cosine down."""

    peak: float
    warmup_steps: int
    begin: float | None = None
    final_ratio: float = 0.1
    paper: ClassVar[str] = "arXiv:2308.04014"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps", *(["begin"] if self.begin is not None else []))
        check_share(self, "final_ratio")

    def after_warmup(self, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(self.peak, max(steps, 1), alpha=self.final_ratio)
