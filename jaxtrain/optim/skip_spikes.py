"""Steps left out where loss or gradient is far from those before. Team OLMo (2024), arXiv:2501.00656, section 3.

A step is skipped where its loss, or the norm of its gradient, exceeds the mean of the last `window` steps by more than
`deviations` of their standard deviations (unbiased). Parameters and the optimizer's state stay as they were. Skipped
steps are among those compared with, so a loss that stays high is soon an ordinary one. Half a window is recorded before
any step can be skipped.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.ranges import check_positive


class SkipSpikesState(NamedTuple):
    """Losses and norms of the last steps, in a ring; `seen` counts all steps, `left_out` those that were skipped."""

    seen: Int[Array, ""]
    left_out: Int[Array, ""]
    recorded: Float[Array, "2 window"]
    inner: optax.OptState


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipSpikes(Wrapper):
    """Makes no step where the loss or the gradient's norm is an outlier among those of the last steps."""

    optimizer: Optimizer
    deviations: float = 6.0
    window: int = 128
    paper: ClassVar[str] = "arXiv:2501.00656"

    def __post_init__(self):
        check_positive(self, "deviations")
        if self.window < 4:
            raise ValueError(f"window={self.window}: a standard deviation of half of it needs at least 4")

    @property
    def changes_decay(self) -> bool:
        return True

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))

        def init(params: dict) -> SkipSpikesState:
            zero = jnp.zeros((), jnp.int32)
            return SkipSpikesState(zero, zero, jnp.zeros((2, self.window), jnp.float32), inner.init(params))

        def update(
            gradient: dict, state: SkipSpikesState, params: dict, *, value, gradient_norm=None, **extra
        ) -> tuple:
            norm = optax.tree.norm(gradient) if gradient_norm is None else gradient_norm
            now = jnp.stack([value, norm]).astype(jnp.float32)
            skipped = self._is_spike(now, state)
            updates, within = inner.update(gradient, state.inner, params, value=value, gradient_norm=norm, **extra)
            updates = jax.tree.map(lambda u: jnp.where(skipped, jnp.zeros_like(u), u), updates)
            within = jax.tree.map(lambda new, old: jnp.where(skipped, old, new), within, state.inner)
            recorded = state.recorded.at[:, state.seen % self.window].set(now)
            return updates, SkipSpikesState(state.seen + 1, state.left_out + skipped, recorded, within)

        return optax.GradientTransformationExtraArgs(init, update)

    def _is_spike(self, now: Float[Array, "2"], state: SkipSpikesState) -> Bool[Array, ""]:
        count = jnp.minimum(state.seen, self.window)
        valid = jnp.arange(self.window) < count
        mean = jnp.sum(state.recorded, axis=1, where=valid) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.square(state.recorded - mean[:, None]), axis=1, where=valid)
        deviation = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
        return (count >= self.window // 2) & jnp.any(now > mean + self.deviations * deviation)

    def within(self, opt_state: optax.OptState) -> optax.OptState:
        return opt_state.inner
