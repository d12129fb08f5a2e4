"""AdEMAMix, Adam with a second and slow momentum. Pagliardini et al. (2024), arXiv:2409.03137, algorithm 1.

The direction is (m / (1 - b1^t) + alpha slow) / (sqrt(v / (1 - b2^t)) + epsilon). Over `ramp_steps` alpha grows from 0
and the half-life of the slow average from that of b1, both linearly (section 3).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class AdEMAMix(Optimizer):
    """AdamW with old gradients mixed in; long runs gain, with `ramp_steps` about as many as the run has.

    The state has 12 bytes a parameter: two momenta and the second moment.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    b3: float = 0.9999
    alpha: float = 5.0
    ramp_steps: int = 0
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:2409.03137"

    def __post_init__(self):
        check_decay(self, "b1", "b2", "b3")
        check_positive(self, "b1", "b3", "epsilon")  # a half-life is 1 / log b
        check_not_negative(self, "alpha", "ramp_steps", "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.chain(
            optax.contrib.scale_by_ademamix(
                self.b1,
                self.b2,
                b3=self.slow_decay if self.ramp_steps else self.b3,
                alpha=lambda count: self.alpha * self._ramp(count),
                eps=self.epsilon,
            ),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )

    def slow_decay(self, count: Int[Array, ""]) -> Float[Array, ""]:
        """Return the decay of the slow average, whose 1 / log goes from that of b1 to that of b3."""
        first, last = 1 / math.log(self.b1), 1 / math.log(self.b3)
        return jnp.exp(1 / (first + (last - first) * self._ramp(count)))

    def _ramp(self, count: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.minimum((count + 1) / max(self.ramp_steps, 1), 1.0)
