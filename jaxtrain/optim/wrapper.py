"""The base class of optimizers that change another one: its gradient before, or its update after."""

from dataclasses import replace

import optax
from jaxtyping import Array, Float

from jaxtrain.optim.base import Optimizer, unchecked
from jaxtrain.optim.schedules import Schedule


class Wrapper(Optimizer):
    """An optimizer around another one. State, learning rate, weight decay and averages are those of that one.

    A wrapper that changes any of these overrides it. One that has a state of its own keeps the other's in it, and
    overrides `within`. A checkpoint of an optimizer also restores with a wrapper around it that has none.
    """

    __slots__ = ()
    optimizer: Optimizer

    @property
    def learning_rate(self) -> Schedule:  # type: ignore[override]  # a field elsewhere, which nothing assigns
        return self.optimizer.learning_rate

    @property
    def rate_key(self) -> str:
        return f"optimizer.{self.optimizer.rate_key}"

    @property
    def weight_decay(self) -> float:
        return self.optimizer.weight_decay

    @property
    def averages(self) -> bool:
        return self.optimizer.averages

    @property
    def anchored(self) -> bool:
        return self.optimizer.anchored

    @property
    def compares_gradients(self) -> bool:
        return self.optimizer.compares_gradients

    @property
    def changes_decay(self) -> bool:
        return self.optimizer.changes_decay

    @property
    def gradients_per_step(self) -> int:
        return self.optimizer.gradients_per_step

    @property
    def momentum_key(self) -> str | None:
        key = self.optimizer.momentum_key
        return key and f"optimizer.{key}"

    def with_momentum(self, value: Float[Array, ""]) -> Optimizer:
        return unchecked(self, "optimizer", self.optimizer.with_momentum(value))

    def decays(self, axes: dict) -> dict:
        return self.optimizer.decays(axes)

    def undecayed(self) -> Optimizer:
        return replace(self, optimizer=self.optimizer.undecayed())

    def within(self, opt_state: optax.OptState) -> optax.OptState:
        """Return the state of the optimizer within."""
        return opt_state

    def used_rate(self, opt_state: optax.OptState, rate: optax.Schedule) -> Float[Array, ""]:
        return self.optimizer.used_rate(self.within(opt_state), rate)

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        return self.optimizer.evaluation_params(self.within(opt_state), params)


def check_takes_parts(optimizer: Optimizer, wrapper: str) -> None:
    """Raise ValueError for an optimizer that goes to a point which it keeps, where a wrapper takes parts of updates."""
    if optimizer.anchored:
        raise ValueError(
            f"optimizer={type(optimizer).__name__}: an update goes to a point that it keeps, and {wrapper} takes a "
            "part of it; take another optimizer, such as AdamW"
        )
