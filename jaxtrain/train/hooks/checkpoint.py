"""Checkpoints at intervals and at the end."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.shapes import ParamTree
from jaxtrain.train.checkpoint import Retention
from jaxtrain.train.evaluation import VALIDATION_LOSS
from jaxtrain.train.hooks.base import SAVING, Hook, RunView, Saving, check_interval, due
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint(Hook):
    """Save every `every_steps` steps; keep the last few, all at multiples of `keep_every_steps`, and the best.

    The best has the least `best_by`, a number that another hook measured at its step. None keeps no best one. Phases
    with other data, or another length, measure other text: where one begins to measure, the best is one of its own.
    """

    every_steps: int
    keep_last: int = 2
    keep_every_steps: int | None = None
    best_by: str | None = VALIDATION_LOSS
    order: ClassVar[int] = SAVING
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        check_interval(self)
        if self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last}: must be at least 1")
        if self.keep_every_steps is not None and self.keep_every_steps < 1:
            raise ValueError(f"keep_every_steps={self.keep_every_steps}: must be at least 1, or None")

    @property
    def name(self) -> str:
        return "checkpoint"

    @property
    def judges_by(self) -> str | None:
        return self.best_by

    @property
    def saving(self) -> Saving:
        kept = Retention(keep_last=self.keep_last, keep_every_steps=self.keep_every_steps, best_by=self.best_by)
        return Saving(self.every_steps, kept)

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if due(run, self.every_steps):
            run.save(state)
        return state, hook_state
