"""Lookahead: k steps forward, one step back. Zhang et al. (2019), arXiv:1907.08610, algorithm 1.

The optimizer within makes `period` steps of fast weights w from the slow weights s, then s <- s + share (w - s) and
w <- s. Evaluation, samples and exports use the slow weights. The optimizer within keeps its moments, which the paper
found to serve as well as setting them back.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper, check_takes_parts
from jaxtrain.ranges import check_at_least_one, check_share


class LookaheadState(NamedTuple):
    made: Int[Array, ""]
    slow: dict
    inner: optax.OptState


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookahead(Wrapper):
    """Moves slow weights by a `share` of what every `period` steps of another optimizer have moved."""

    optimizer: Optimizer
    period: int = 5
    share: float = 0.5
    paper: ClassVar[str] = "arXiv:1907.08610"

    def __post_init__(self):
        check_at_least_one(self, "period")
        check_share(self, "share")
        check_takes_parts(self.optimizer, "Lookahead")
        if self.optimizer.averages:
            name = type(self.optimizer).__name__
            raise ValueError(
                f"optimizer={name}: it evaluates with an average of its own, and Lookahead with slow weights"
            )

    @property
    def averages(self) -> bool:
        return True

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))

        def init(params: dict) -> LookaheadState:
            return LookaheadState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params), inner.init(params))

        def update(gradient: dict, state: LookaheadState, params: dict, **extra) -> tuple[dict, LookaheadState]:
            updates, within = inner.update(gradient, state.inner, params, **extra)
            back = (state.made + 1) % self.period == 0
            slow = jax.tree.map(
                lambda s, w, u: jnp.where(back, s + self.share * (w + u - s), s), state.slow, params, updates
            )
            updates = jax.tree.map(lambda s, w, u: jnp.where(back, s - w, u), slow, params, updates)
            return updates, LookaheadState(state.made + 1, slow, within)

        return optax.GradientTransformationExtraArgs(init, update)

    def within(self, opt_state: optax.OptState) -> optax.OptState:
        return opt_state.inner

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        return opt_state.slow
