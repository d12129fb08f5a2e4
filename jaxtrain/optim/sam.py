"""Sharpness-aware minimization. Foret et al. (2020), arXiv:2010.01412, eq. 2 and algorithm 1.

The optimizer gets the gradient at w + rho g / |g|, where g is the gradient at w and |g| its norm over all parameters.
As in the paper, the term with second derivatives is left out. What a step reports (loss, norm of the gradient), and
what buffers are updated from, is that of w.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class SAM(Wrapper):
    """Follows the gradient at the worst point in a ball of radius `rho`; a step takes two gradients."""

    optimizer: Optimizer
    rho: float = 0.05
    paper: ClassVar[str] = "arXiv:2010.01412"

    def __post_init__(self):
        check_positive(self, "rho")
        check_own_gradient(self.optimizer)

    @property
    def gradients_per_step(self) -> int:
        return 1 + self.optimizer.gradients_per_step

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))

        def update(gradient: dict, state: optax.OptState, params: dict, *, grad_fn, **extra) -> tuple:
            worst = worst_point(params, gradient, self.rho)
            return inner.update(grad_fn(worst), state, params, grad_fn=grad_fn, **extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)


def worst_point(params: dict, gradient: dict, rho: float) -> dict:
    """Return w + rho g / |g|, to first order the worst point of a ball of radius rho; w where the gradient is 0."""
    norm = optax.tree.norm(gradient)
    unit = jnp.where(norm > 0, norm, 1.0)
    return jax.tree.map(lambda w, g: w + (rho * (g / unit)).astype(w.dtype), params, gradient)


def check_own_gradient(optimizer: Optimizer) -> None:
    """Raise ValueError for an optimizer that would compare gradients at perturbed and at other parameters."""
    if optimizer.compares_gradients:
        raise ValueError(
            f"optimizer={type(optimizer).__name__}: it compares the gradient with one at older parameters, "
            "which are not perturbed; take exact=False"
        )
