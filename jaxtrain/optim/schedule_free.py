"""Schedule-free AdamW, which averages instead of decaying. Defazio et al. (2024), arXiv:2405.15682.

As in the authors' package `schedulefree`, an iterate is weighted by the square of the largest learning rate up to the
update that made it, its own included. Deviation: their warm-up starts above 0, ours with an update at rate 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleFree(Optimizer):
    """Gradients are taken at the interpolated point; evaluation, samples and exports use the average.

    The learning rate needs no decay: give it `Constant` with a warm-up.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:2405.15682"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "b1", "epsilon")  # the average is found by dividing by b1
        check_not_negative(self, "weight_decay")

    @property
    def averages(self) -> bool:
        return True

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        base = optax.chain(  # AdamW without its first moment, which the interpolation replaces
            optax.scale_by_rms(decay=self.b2, eps=self.epsilon, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )
        # optax counts from 1 here and from 0 in the base. Without the -1 an iterate gets the next update's weight.
        return optax.contrib.schedule_free(base, learning_rate=lambda count: rate(count - 1), b1=self.b1)

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        return optax.contrib.schedule_free_eval_params(opt_state, params)
