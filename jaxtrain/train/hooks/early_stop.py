"""The end of a run that no longer improves."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxtrain.shapes import ParamTree
from jaxtrain.train.evaluation import VALIDATION_LOSS
from jaxtrain.train.hooks.base import JUDGING, Hook, RunView
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStop(Hook):
    """End the run when `by` has not fallen below its least value in `patience` measurements one after another.

    `by` is a number that another hook measures. A value counts as lower if it is so by more than `margin`. It is the
    criterion UP of Prechelt (1998), "Early stopping - but when?", with the least value in place of the one before. A
    learning rate that falls to the end of the run is cut short: a run that will be stopped wants one that does not.
    """

    patience: int = 3
    margin: float = 0.0
    by: str = VALIDATION_LOSS
    order: ClassVar[int] = JUDGING
    paper: ClassVar[str] = "doi:10.1007/3-540-49430-8_3"

    def __post_init__(self):
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1")
        if self.margin < 0:
            raise ValueError(f"margin={self.margin}: must not be negative")

    @property
    def name(self) -> str:
        return "early_stop"

    @property
    def judges_by(self) -> str:
        return self.by

    def initial_state(self, state: TrainState) -> ParamTree:
        zero = jnp.zeros_like(state.step)
        return {"least": jnp.full_like(state.step, jnp.inf, jnp.float32), "waited": zero, "least_at": zero}

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if self.by not in run.measured:
            return state, hook_state
        found = run.measured[self.by]
        lower = found < float(hook_state["least"]) - self.margin  # never true of NaN
        if lower:
            new = {"least": found, "waited": 0, "least_at": run.step}
        else:
            new = {"waited": int(hook_state["waited"]) + 1}
        return state, hook_state | {name: jnp.full_like(hook_state[name], value) for name, value in new.items()}

    def ends(self, hook_state: ParamTree) -> str | None:
        if int(hook_state["waited"]) < self.patience:
            return None
        least, step = float(hook_state["least"]), int(hook_state["least_at"])
        return f"{self.by} has not fallen below {least:.4f}, that of step {step}, in {self.patience} measurements"
