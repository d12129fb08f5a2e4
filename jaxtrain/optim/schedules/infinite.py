"""A rate for a run without an end. Singh et al. (2025), arXiv:2503.02844.

Warm up, cool down by half a cosine to `constant_ratio` of the peak, and stay there as long as the run goes on. Up to
there the rate does not depend on the length of the run. To release a model, copy the folder of the run and
give the copy `anneal_steps`: the rate falls by the same factor in every step to `final_ratio` of the peak, and the
run itself goes on. Left out: a cool-down by the inverse square root.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_at_least_one, check_not_negative, check_positive, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Infinite(Schedule):
    """Warm up, cool down, stay constant; in a branch fall exponentially over the last `anneal_steps`."""

    peak: float
    cooldown_steps: int
    warmup_steps: int = 0
    anneal_steps: int = 0
    constant_ratio: float = 0.5
    final_ratio: float = 0.01
    paper: ClassVar[str] = "arXiv:2503.02844"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps", "anneal_steps")
        check_at_least_one(self, "cooldown_steps")
        check_positive(self, "final_ratio")
        check_share(self, "constant_ratio")
        if self.final_ratio > self.constant_ratio:
            raise ValueError(f"final_ratio={self.final_ratio}: must not exceed constant_ratio={self.constant_ratio}")

    def after_warmup(self, steps: int) -> optax.Schedule:
        constant = self.peak * self.constant_ratio
        before = self.stable_steps(steps, self.anneal_steps, "anneal_steps")
        if self.cooldown_steps > before:
            raise ValueError(
                f"cooldown_steps={self.cooldown_steps} exceeds the {before} steps between warm-up and anneal: make it "
                "smaller or the run longer"
            )
        # A cosine that is over stays where it has ended.
        cooldown = optax.cosine_decay_schedule(self.peak, self.cooldown_steps, alpha=self.constant_ratio)
        if not self.anneal_steps:
            return cooldown
        factor = self.final_ratio / self.constant_ratio
        anneal = optax.exponential_decay(constant, self.anneal_steps, factor, end_value=constant * factor)
        return optax.join_schedules([cooldown, anneal], [before])
