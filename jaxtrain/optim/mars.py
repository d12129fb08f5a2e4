"""MARS, variance reduction for any optimizer with momentum. Yuan et al. (2024), arXiv:2411.10438, algorithm 1.

The optimizer gets c = g_t + gamma b1 / (1 - b1) (g_t - g'), clipped to a norm of 1 for each parameter of each layer as
in the authors' code. g' is the gradient at the parameters before the last step: on this batch where `exact`, which
takes a second gradient, otherwise on the batch of that step, which is the gradient that was had then (section 3.4). In
the first step c = g.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxtrain.axes import Axes
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.ranges import check_not_negative


class MARSState(NamedTuple):
    """`before` is the gradient of the step before, or its parameters where the gradient is taken again."""

    begun: Bool[Array, ""]
    before: dict
    inner: optax.OptState


@dataclass(frozen=True, kw_only=True, slots=True)
class MARS(Wrapper):
    """Corrects a gradient by what changed since the last step; `gamma` says how much."""

    optimizer: Optimizer
    gamma: float = 0.025
    exact: bool = False
    paper: ClassVar[str] = "arXiv:2411.10438"

    def __post_init__(self):
        check_not_negative(self, "gamma")
        name = type(self.optimizer).__name__
        if self.optimizer.gradients_per_step > 1:
            raise ValueError(f"optimizer={name}: it follows another gradient; write {name}(optimizer=MARS(...))")
        if isinstance(self.optimizer, Wrapper):
            raise ValueError(f"optimizer={name}: MARS corrects the momentum within; write {name}(optimizer=MARS(...))")
        if self.optimizer.momentum_key != "b1":
            raise ValueError(
                f"optimizer={name}: MARS corrects the momentum of all parameters, whose decay is `b1`; take AdamW, "
                "LAMB or Lion"
            )

    @property
    def compares_gradients(self) -> bool:
        return self.exact

    @property
    def gradients_per_step(self) -> int:
        return 2 if self.exact else 1

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))
        b1: float = self.optimizer.b1  # type: ignore[attr-defined]  # at `momentum_key`
        share = self.gamma * b1 / (1 - b1)

        def init(params: dict) -> MARSState:
            return MARSState(jnp.zeros((), bool), jax.tree.map(jnp.zeros_like, params), inner.init(params))

        def update(gradient: dict, state: MARSState, params: dict, *, grad_fn=None, **extra) -> tuple[dict, MARSState]:
            before = grad_fn(_or(state.begun, state.before, params)) if self.exact else state.before
            before = _or(state.begun, before, gradient)
            corrected = jax.tree.map(lambda g, old: g + share * (g - old), gradient, before)
            corrected = jax.tree.map(_clipped, axes, corrected)
            updates, within = inner.update(corrected, state.inner, params, grad_fn=grad_fn, **extra)
            return updates, MARSState(jnp.ones((), bool), params if self.exact else gradient, within)

        return optax.GradientTransformationExtraArgs(init, update)

    def within(self, opt_state: optax.OptState) -> optax.OptState:
        return opt_state.inner


def _or(condition: Bool[Array, ""], tree: dict, other: dict) -> dict:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), tree, other)


def _clipped(facts: Axes, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x with a norm of 1 at most, for each parameter of a stack."""
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(facts.leading, x.ndim)), keepdims=True))
    return x / jnp.maximum(norm, 1.0)
