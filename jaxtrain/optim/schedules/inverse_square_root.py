"""The inverse square root of the step. Vaswani et al. (2017), arXiv:1706.03762, eq. 3."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.ranges import check_not_negative


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
