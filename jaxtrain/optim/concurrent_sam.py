"""Sharpness-aware minimization along a gradient at older parameters. Liu et al. (2021), arXiv:2106.01221, algorithm 1.

ConAdv perturbs inputs by a gradient at the weights of `delay` steps before, which could be computed while the step
before is made. Here the weights are perturbed, as in SAM, and all gradients are computed in their step: the optimizer
gets the gradient at w + rho g' / |g'|, where g' is that of this batch at the older weights. Where there are none yet,
they are the first ones.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.sam import check_own_gradient, worst_point
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.ranges import check_at_least_one, check_positive


class ConcurrentSAMState(NamedTuple):
    """`stale` are the parameters of the last `delay` steps, the oldest first."""

    stale: tuple[dict, ...]
    inner: optax.OptState


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcurrentSAM(Wrapper):
    """SAM with a perturbation by a gradient at the parameters of `delay` steps before, which it keeps."""

    optimizer: Optimizer
    rho: float = 0.05
    delay: int = 1
    paper: ClassVar[str] = "arXiv:2106.01221"

    def __post_init__(self):
        check_positive(self, "rho")
        check_own_gradient(self.optimizer)
        check_at_least_one(self, "delay")

    @property
    def gradients_per_step(self) -> int:
        return 2 + self.optimizer.gradients_per_step

    def within(self, opt_state: optax.OptState) -> optax.OptState:
        return opt_state.inner

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))

        def init(params: dict) -> ConcurrentSAMState:
            return ConcurrentSAMState(
                tuple(jax.tree.map(jnp.array, params) for _ in range(self.delay)), inner.init(params)
            )

        def update(gradient: dict, state: ConcurrentSAMState, params: dict, *, grad_fn, **extra) -> tuple:
            point = worst_point(params, grad_fn(state.stale[0]), self.rho)
            updates, own = inner.update(grad_fn(point), state.inner, params, grad_fn=grad_fn, **extra)
            return updates, ConcurrentSAMState((*state.stale[1:], params), own)

        return optax.GradientTransformationExtraArgs(init, update)
