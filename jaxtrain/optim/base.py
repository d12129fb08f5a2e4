"""The base class of optimizers, and an optimizer together with the clipping of gradients."""

from abc import abstractmethod
from typing import ClassVar

import optax

from jaxtrain.optim.schedules import Schedule
from jaxtrain.technique import Technique


class Optimizer(Technique):
    """A frozen dataclass that builds an optax transformation. A subclass has the field `learning_rate`.

    `averages`: evaluation needs the optimizer's state, not the parameters alone. Weight decay is decoupled, and applies
    to matrices and tables only.
    """

    __slots__ = ()
    learning_rate: Schedule
    averages: ClassVar[bool] = False

    @abstractmethod
    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        """Return the transformation for parameters that have the facts `axes`.

        `rate` is the learning rate of the phase, by the number of updates made.
        """

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        """Return the parameters to evaluate, sample and export with."""
        return params


def transformation(
    optimizer: Optimizer, rate: optax.Schedule, axes: dict, *, clip_norm: float | None
) -> optax.GradientTransformation:
    """Return clipping by the gradient's global norm (Pascanu et al., 2013, arXiv:1211.5063), then the optimizer."""
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optimizer.build(rate, axes))


def evaluation_params(optimizer: Optimizer, opt_state: optax.OptState, params: dict) -> dict:
    """Return the parameters to evaluate with, from the state of `transformation`."""
    return optimizer.evaluation_params(opt_state[1], params)
