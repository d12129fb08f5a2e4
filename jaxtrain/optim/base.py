"""The base class of optimizers, and an optimizer together with the clipping of gradients."""

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxtrain.optim import matrix
from jaxtrain.optim.schedules import Schedule
from jaxtrain.technique import Technique


class Optimizer(Technique):
    """A frozen dataclass that builds an optax transformation. A subclass has the field `learning_rate`.

    Weight decay is decoupled: the parameters that decay lose `rate * weight_decay` of themselves in a step. A subclass
    that decays has the field `weight_decay`.
    """

    __slots__ = ()
    learning_rate: Schedule
    decays_in_direction: ClassVar[bool] = False  # whether decay is a part of what the optimizer normalises

    @property
    def weight_decay(self) -> float:
        return 0.0

    @property
    def averages(self) -> bool:
        """Whether evaluation needs the optimizer's state, not the parameters alone."""
        return False

    @property
    def gradients_per_step(self) -> int:
        """How many gradients a step takes: one, and those that the transformation asks of `grad_fn`."""
        return 1

    @property
    def anchored(self) -> bool:
        """Whether an update goes to a point that the state keeps, so that none may take a part of it."""
        return False

    @property
    def compares_gradients(self) -> bool:
        """Whether it compares gradients at the parameters of two steps, which must then be at these parameters."""
        return False

    @property
    def changes_decay(self) -> bool:
        """Whether it makes less of a step, weight decay included, so that decay cannot be taken out of it."""
        return False

    @property
    def momentum_key(self) -> str | None:
        """The key of the decay of the first moment, which a schedule may give; None where it cannot."""
        return None

    @property
    def rate_key(self) -> str:
        """The key of the learning rate, below that of the optimizer."""
        return "learning_rate"

    @abstractmethod
    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        """Return the transformation for parameters that have the facts `axes`.

        `rate` is the learning rate of the phase, by the number of updates made. A transformation with extra arguments
        (`optax.GradientTransformationExtraArgs`) gets `value`, the loss, `gradient_norm`, the norm of the gradient
        before clipping (where there is clipping), and `grad_fn`: parameters to their gradient on the same batch, with
        the same noise. `grad_fn` is called outside of loops and branches of JAX.
        """

    def with_momentum(self, value: Float[Array, ""]) -> "Optimizer":
        """Return the optimizer with another value, of the step, at `momentum_key`. It may be traced, so is unchecked.

        Raises:
            ValueError: the optimizer has no such key.
        """
        if self.momentum_key is None:
            raise ValueError(
                f"optimizer={type(self).__name__}: its momentum cannot follow the schedule; take AdamW, LAMB, Lion or "
                "Muon, or set least_momentum to None"
            )
        return unchecked(self, self.momentum_key, value)

    def decays(self, axes: dict) -> dict:
        """Return a tree of booleans: the parameters to which `weight_decay` applies."""
        return matrix.decays(axes)

    def undecayed(self) -> "Optimizer":
        """Return the optimizer without weight decay.

        Raises:
            ValueError: its weight decay is a part of its direction.
        """
        if self.weight_decay and self.decays_in_direction:
            raise ValueError(
                f"weight_decay={self.weight_decay}: {type(self).__name__}'s decay is a part of its direction and "
                "cannot be taken out of it; set weight_decay to 0"
            )
        return unchecked(self, "weight_decay", 0.0) if self.weight_decay else self

    def used_rate(self, opt_state: optax.OptState, rate: optax.Schedule) -> Float[Array, ""]:
        """Return the learning rate of the update that led to a state, for the metrics.

        That is `rate` at the number of updates that the state had counted before. An optimizer that finds its rate
        itself overrides this.

        Raises:
            ValueError: the state has no `count`.
        """
        return jnp.asarray(rate(updates_made(self, opt_state) - 1), jnp.float32)

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        """Return the parameters to evaluate, sample and export with."""
        return params


def updates_made(optimizer: Optimizer, opt_state: optax.OptState) -> Int[Array, ""]:
    """Return the number of updates that a state of the optimizer has counted.

    Raises:
        ValueError: the state has no `count`.
    """
    counts = optax.tree.get_all_with_path(opt_state, "count", lambda _, value: _is_counter(value))
    if not counts:
        raise ValueError(
            f"optimizer={type(optimizer).__name__}: its state has no `count` of updates, so its learning rate is "
            "unknown; scale by optax.scale_by_learning_rate(rate), or define `used_rate`"
        )
    return counts[0][1]


def unchecked(optimizer: Optimizer, key: str, value: object) -> Optimizer:
    """Return a copy with another value of a field, which `__post_init__` does not see."""
    changed = copy.copy(optimizer)
    object.__setattr__(changed, key, value)
    return changed


def _following(optimizer: Optimizer, rate: optax.Schedule, momentum: optax.Schedule, axes: dict):
    """Return the transformation of an optimizer whose momentum is `momentum` at the number of updates made."""
    plain = optax.with_extra_args_support(optimizer.build(rate, axes))

    def update(gradient: dict, state: optax.OptState, params: dict | None = None, **extra) -> tuple:
        now = optimizer.with_momentum(jnp.asarray(momentum(updates_made(optimizer, state)), jnp.float32))
        return optax.with_extra_args_support(now.build(rate, axes)).update(gradient, state, params, **extra)

    return optax.GradientTransformationExtraArgs(plain.init, update)


def _is_counter(value) -> bool:
    """Tell a count of updates from a moment of a parameter that is called `count`."""
    return isinstance(value, jax.Array) and value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)


def transformation(
    optimizer: Optimizer,
    rate: optax.Schedule,
    axes: dict,
    *,
    clip_norm: float | None,
    momentum: optax.Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return clipping by the gradient's global norm (Pascanu et al., 2013, arXiv:1211.5063), then the optimizer.

    Gradients that the optimizer asks of `grad_fn` are clipped as well. `momentum` is that of the schedule. The
    optimizer gets `gradient_norm`, the norm before clipping.
    """
    tx = optimizer.build(rate, axes) if momentum is None else _following(optimizer, rate, momentum, axes)
    if clip_norm is None:
        return optax.chain(optax.identity(), tx)
    clip = optax.clip_by_global_norm(clip_norm)
    clipped = with_grad_fn(tx, lambda gradient: clip.update(gradient, optax.EmptyState())[0])
    both = optax.chain(clip, clipped)

    def update(gradient: dict, state: optax.OptState, params: dict | None = None, **extra) -> tuple:
        return both.update(gradient, state, params, gradient_norm=optax.tree.norm(gradient), **extra)

    return optax.GradientTransformationExtraArgs(both.init, update)


def with_grad_fn(
    tx: optax.GradientTransformation, change: Callable[[dict], dict]
) -> optax.GradientTransformationExtraArgs:
    """Return `tx` with the gradients of its `grad_fn` changed."""
    inner = optax.with_extra_args_support(tx)

    def update(gradient: dict, state: optax.OptState, params: dict | None = None, **extra) -> tuple:
        if grad_fn := extra.get("grad_fn"):
            extra["grad_fn"] = lambda *point: change(grad_fn(*point))
        return inner.update(gradient, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def used_rate(optimizer: Optimizer, rate: optax.Schedule) -> Callable[[optax.OptState], jax.Array]:
    """Return the function from a state of `transformation` to the learning rate of its last update."""
    return lambda opt_state: optimizer.used_rate(opt_state[1], rate)


def evaluation_params(optimizer: Optimizer, opt_state: optax.OptState, params: dict) -> dict:
    """Return the parameters to evaluate with, from the state of `transformation`."""
    return optimizer.evaluation_params(opt_state[1], params)
