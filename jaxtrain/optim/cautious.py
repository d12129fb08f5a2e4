"""Cautious optimizers. Liang et al. (2024), arXiv:2411.16085.

An element of the update u that has another sign than the gradient g is left out: u <- u [u g > 0] / mean [u g > 0].
The mean is over one tensor of one layer, in a mixture of one expert, and counts as 1/1000 at least, as in the authors'
code (github.com/kyleliang919/C-Optim); the paper's first version has (count + 1) / elements in its place. Weight decay
is not left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtrain.axes import Axes
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper, check_takes_parts

LEAST_SHARE = 1e-3  # of the elements of a tensor: the rest of the update is scaled up by at most 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cautious(Wrapper):
    """Leaves out the elements of an update whose sign is not that of the gradient, and scales up the others."""

    optimizer: Optimizer
    paper: ClassVar[str] = "arXiv:2411.16085"

    def __post_init__(self):
        name = type(self.optimizer).__name__
        self.optimizer.undecayed()  # raises where its decay cannot be told from its update
        check_takes_parts(self.optimizer, "Cautious")
        if self.optimizer.changes_decay:
            raise ValueError(
                f"optimizer={name}: it makes less of a step, weight decay included, which Cautious would add again; "
                f"write {name}(optimizer=Cautious(...))"
            )
        if self.optimizer.averages:
            raise ValueError(f"optimizer={name}: its average is found from whole updates; Cautious takes another one")
        if self.optimizer.gradients_per_step > 1:
            raise ValueError(
                f"optimizer={name}: it follows another gradient than the one Cautious compares with; "
                f"write {name}(optimizer=Cautious(...))"
            )

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.undecayed().build(rate, axes))
        decays = self.decays(axes)

        def update(gradient: dict, state: optax.OptState, params: dict, **extra) -> tuple:
            updates, state = inner.update(gradient, state, params, **extra)
            updates = jax.tree.map(_agreeing, axes, updates, gradient)
            lost = self.used_rate(state, rate) * self.weight_decay
            updates = jax.tree.map(lambda decay, u, w: u - lost * w if decay else u, decays, updates, params)
            return updates, state

        return optax.GradientTransformationExtraArgs(inner.init, update)


def _agreeing(facts: Axes, update: Float[Array, "..."], gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return what of an update goes down the gradient, scaled up. Signs are compared, as products might underflow."""
    agree = (jnp.sign(update) * jnp.sign(gradient) < 0).astype(update.dtype)
    share = jnp.mean(agree, axis=tuple(range(facts.leading, update.ndim)), keepdims=True)
    return update * (agree / jnp.maximum(share, LEAST_SHARE))
