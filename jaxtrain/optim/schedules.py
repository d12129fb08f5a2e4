"""Learning-rate schedules: optax schedules of the number of updates made.

Every schedule warms up linearly from 0 over `warmup_steps`, and spans the steps that it is built for. A warm-up longer
than those is an error.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax

from jaxtrain.ranges import check_not_negative, check_share
from jaxtrain.technique import Technique


class Schedule(Technique):
    """A frozen dataclass that builds a learning rate. A subclass has the fields `peak` and `warmup_steps`."""

    __slots__ = ()
    peak: float
    warmup_steps: int

    def build(self, total_steps: int) -> optax.Schedule:
        """Return the learning rate by the number of updates made, for a run of `total_steps`.

        Raises:
            ValueError: the schedule takes more steps than the run has.
        """
        if self.warmup_steps > total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} exceeds the {total_steps} steps there are: make it smaller or the "
                "run longer"
            )
        warmup = optax.linear_schedule(0.0, self.peak, max(self.warmup_steps, 1))
        return optax.join_schedules([warmup, self.after_warmup(total_steps - self.warmup_steps)], [self.warmup_steps])

    @abstractmethod
    def after_warmup(self, steps: int) -> optax.Schedule:
        """Return the learning rate by the number of updates since the warm-up, of which there are `steps`."""


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
        stable = steps - self.decay_steps
        if stable < 0:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} exceed the "
                f"{steps + self.warmup_steps} steps there are: make them smaller or the run longer"
            )
        decay = optax.linear_schedule(self.peak, self.peak * self.final_ratio, max(self.decay_steps, 1))
        return optax.join_schedules([optax.constant_schedule(self.peak), decay], [stable])


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseSquareRoot(Schedule):
    """Warm up, then peak * sqrt(warmup / step). Vaswani et al. (2017), arXiv:1706.03762, eq. 3."""

    peak: float
    warmup_steps: int = 1
    paper: ClassVar[str] = "arXiv:1706.03762"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps")

    def after_warmup(self, steps: int) -> optax.Schedule:
        warmup = max(self.warmup_steps, 1)
        return lambda step: self.peak * jnp.sqrt(warmup / jnp.maximum(step + warmup, 1))
