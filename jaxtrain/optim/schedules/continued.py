"""Continued pretraining without a warm-up. Parmar et al. (2024), "Reuse, Don't Retrain", arXiv:2407.07263.

The first step has the last rate of the run before, exactly; from there half a cosine down. Left out: the change of data
on the way, which is another phase.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.continuing import Continuing
from jaxtrain.ranges import check_not_negative, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Continued(Continuing):
    """From the last rate of the run before down to `final_ratio` of it, by half a cosine and without a warm-up."""

    begin: float | None = None
    final_ratio: float = 0.01
    paper: ClassVar[str] = "arXiv:2407.07263"

    def __post_init__(self):
        if self.begin is not None:
            check_not_negative(self, "begin")
        check_share(self, "final_ratio")

    @property
    def peak(self) -> float:  # type: ignore[override]  # a field elsewhere, which nothing assigns
        if self.begin is None:
            raise ValueError("begin=None: there is no run to continue; set initial=@FromRun(path=...), or begin")
        return self.begin

    @property
    def warmup_steps(self) -> int:  # type: ignore[override]
        return 0

    def after_warmup(self, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(self.peak, max(steps, 1), alpha=self.final_ratio)
