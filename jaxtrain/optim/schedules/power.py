"""A power of the tokens read. Shen et al. (2024), "Power Scheduler", arXiv:2408.13359.

rate = min(peak, rows * a * tokens^b) with b < 0, for batches of so many rows and the tokens read before the step: what
the rate is does not depend on the length of the run, until the decay. The line of the warm-up is another bound. The
decay multiplies the rate by a line from 1 to `final_ratio`. `a` and `b` are fits to a model, its parametrization and
the sequence length, so they have no defaults.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax

from jaxtrain.optim.schedules.base import Batches, Schedule
from jaxtrain.ranges import check_not_negative, check_positive, check_share


@dataclass(frozen=True, kw_only=True, slots=True)
class Power(Schedule):
    """min(peak, rows * a * tokens^b), and a straight line down over the last `decay_steps`."""

    peak: float
    a: float
    b: float
    decay_steps: int = 0
    warmup_steps: int = 0
    final_ratio: float = 0.0
    paper: ClassVar[str] = "arXiv:2408.13359"

    def __post_init__(self):
        check_not_negative(self, "peak", "warmup_steps", "decay_steps")
        check_positive(self, "a")
        check_share(self, "final_ratio")
        if not self.b <= 0:
            raise ValueError(f"b={self.b}: must not be above 0, the rate falls with the tokens")

    def build(self, total_steps: int, batches: Batches | None = None) -> optax.Schedule:
        if batches is None:
            raise ValueError("Power needs the batches of the phase: build it with `batches`")
        warmed = Schedule.build(self, total_steps)
        fall = optax.linear_schedule(1.0, self.final_ratio, max(self.decay_steps, 1))
        decay = optax.join_schedules([optax.constant_schedule(1.0), fall], [total_steps - self.decay_steps])

        def rate(count):
            tokens = jnp.maximum(jnp.asarray(batches.tokens(count), jnp.float32), 1.0)
            return decay(count) * jnp.minimum(warmed(count), batches.rows * self.a * tokens**self.b)

        return rate

    def after_warmup(self, steps: int) -> optax.Schedule:
        self.stable_steps(steps, self.decay_steps)
        return optax.constant_schedule(self.peak)
