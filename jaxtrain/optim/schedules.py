"""Learning-rate schedules: optax schedules of the number of updates made.

Every one warms up linearly from 0 over `warmup_steps`, and spans the steps of the run unless told otherwise.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import optax

from jaxtrain.ranges import check_not_negative, check_share


def _after_warmup(schedule, then: optax.Schedule) -> optax.Schedule:
    warmup = optax.linear_schedule(0.0, schedule.peak, max(schedule.warmup_steps, 1))
    return optax.join_schedules([warmup, then], [schedule.warmup_steps])


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """Warm up, then stay at the peak."""

    peak: float
    warmup_steps: int = 0

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")

    def build(self, total_steps: int) -> optax.Schedule:
        return _after_warmup(self, optax.constant_schedule(self.peak))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Warm up, then half a cosine down to `final_ratio` of the peak. Loshchilov and Hutter (2017), arXiv:1608.03983."""

    peak: float
    warmup_steps: int = 0
    final_ratio: float = 0.1

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")
        check_share(self, "final_ratio")

    def build(self, total_steps: int) -> optax.Schedule:
        steps = max(total_steps - self.warmup_steps, 1)
        return _after_warmup(self, optax.cosine_decay_schedule(self.peak, steps, alpha=self.final_ratio))


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """Warm up, then a straight line down to `final_ratio` of the peak."""

    peak: float
    warmup_steps: int = 0
    final_ratio: float = 0.0

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")
        check_share(self, "final_ratio")

    def build(self, total_steps: int) -> optax.Schedule:
        steps = max(total_steps - self.warmup_steps, 1)
        return _after_warmup(self, optax.linear_schedule(self.peak, self.peak * self.final_ratio, steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStableDecay:
    """Warm up, stay at the peak, and fall in a straight line over the last `decay_steps`.

    Hu et al. (2024), arXiv:2404.06395; the linear tail is that of Hägele et al. (2024), arXiv:2405.18392.
    """

    peak: float
    decay_steps: int
    warmup_steps: int = 0
    final_ratio: float = 0.0

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps", "decay_steps")
        check_share(self, "final_ratio")

    def build(self, total_steps: int) -> optax.Schedule:
        stable = total_steps - self.warmup_steps - self.decay_steps
        if stable < 0:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} exceed the {total_steps} steps "
                f"there are: make them smaller or the run longer"
            )
        decay = optax.linear_schedule(self.peak, self.peak * self.final_ratio, max(self.decay_steps, 1))
        return _after_warmup(self, optax.join_schedules([optax.constant_schedule(self.peak), decay], [stable]))


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseSquareRoot:
    """Warm up, then peak * sqrt(warmup / step). Vaswani et al. (2017), arXiv:1706.03762, eq. 3."""

    peak: float
    warmup_steps: int = 1

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")

    def build(self, total_steps: int) -> optax.Schedule:
        warmup = max(self.warmup_steps, 1)
        return _after_warmup(self, lambda step: self.peak * jnp.sqrt(warmup / jnp.maximum(step + warmup, 1)))


Schedule = Constant | Cosine | Linear | WarmupStableDecay | InverseSquareRoot
