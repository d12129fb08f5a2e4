"""Half a cosine. Loshchilov and Hutter (2017), arXiv:1608.03983."""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_not_negative, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine(Schedule):
    """Warm up, then half a cosine down to `final_ratio` of the peak. Loshchilov and Hutter (2017), arXiv:1608.03983."""

    peak: float
    warmup_steps: int = 0
    final_ratio: float = 0.1
    paper: ClassVar[str] = "arXiv:1608.03983"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")
        check_share(self, "final_ratio")

    def after_warmup(self, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(self.peak, max(steps, 1), alpha=self.final_ratio)
