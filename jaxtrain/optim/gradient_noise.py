"""Noise on gradients. Neelakantan et al. (2015), arXiv:1511.06807, eq. 1.

Step t adds N(0, eta / (1 + t)^gamma) to each element, behind clipping as in the paper's section 3. The noise is a
function of the seed, the number of updates and the element, so it is the same on any mesh, and after a restart.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.ranges import check_not_negative


class GradientNoiseState(NamedTuple):
    drawn: Int[Array, ""]
    inner: optax.OptState


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientNoise(Wrapper):
    """Adds Gaussian noise to the gradient, of variance `eta` at first and less with every step."""

    optimizer: Optimizer
    eta: float = 0.3
    gamma: float = 0.55
    seed: int = 0
    paper: ClassVar[str] = "arXiv:1511.06807"

    def __post_init__(self):
        check_not_negative(self, "eta", "gamma", "seed")
        if self.optimizer.gradients_per_step > 1:
            name = type(self.optimizer).__name__
            raise ValueError(
                f"optimizer={name}: it takes gradients that no noise is added to; "
                f"write {name}(optimizer=GradientNoise(...))"
            )

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))

        def init(params: dict) -> GradientNoiseState:
            return GradientNoiseState(jnp.zeros((), jnp.int32), inner.init(params))

        def update(
            gradient: dict, state: GradientNoiseState, params: dict | None = None, **extra
        ) -> tuple[dict, GradientNoiseState]:
            key = jax.random.fold_in(jax.random.key(self.seed), state.drawn)
            deviation = jnp.sqrt(self.eta / (1.0 + state.drawn) ** self.gamma)
            noise = optax.tree.random_like(key, gradient)
            noisy = jax.tree.map(lambda g, n: g + (deviation * n).astype(g.dtype), gradient, noise)
            updates, within = inner.update(noisy, state.inner, params, **extra)
            return updates, GradientNoiseState(state.drawn + 1, within)

        return optax.GradientTransformationExtraArgs(init, update)

    def within(self, opt_state: optax.OptState) -> optax.OptState:
        return opt_state.inner
