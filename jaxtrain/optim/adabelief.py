"""AdaBelief, steps by how far gradients are from their average. Zhuang et al. (2020), arXiv:2010.07468, algorithm 2.

Adam whose second moment is that of g - m, not of g: s <- b2 s + (1 - b2) (g - m)^2 + epsilon. As in the paper, epsilon
is also added to the root of s. Left out: the rectification of the authors' code, which is not in the paper.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaBelief(Optimizer):
    """Adam with long steps where gradients are as they were, and short ones where they change.

    The state has 8 bytes a parameter, as Adam's.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-16
    weight_decay: float = 0.1
    paper: ClassVar[str] = "arXiv:2010.07468"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_belief(self.b1, self.b2, eps=self.epsilon, eps_root=self.epsilon),
            optax.add_decayed_weights(self.weight_decay, mask=decays(axes)),
            optax.scale_by_learning_rate(rate),
        )
