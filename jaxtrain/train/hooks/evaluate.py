"""The validation loss, of the model and of every average that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.shapes import ParamTree
from jaxtrain.train.evaluation import VALIDATION_LOSS
from jaxtrain.train.hooks.base import Hook, RunView, check_interval, due
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate(Hook):
    """Mean loss in nats a token over the first `batches` batches of validation, the same ones every time."""

    every_steps: int
    batches: int = 20
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        check_interval(self)
        if self.batches < 1:
            raise ValueError(f"batches={self.batches}: must be at least 1")

    @property
    def name(self) -> str:
        return "evaluate"

    def measures(self, averages: Sequence[str]) -> tuple[str, ...]:
        return VALIDATION_LOSS, *(f"{VALIDATION_LOSS}_{name}" for name in averages)

    @property
    def validation_batches(self) -> int:
        return self.batches

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if due(run, self.every_steps):
            for name, model in run.evaluation_models(state).items():
                loss, tokens = run.evaluate(model, batches=self.batches)
                label = f"{VALIDATION_LOSS}_{name}" if name else VALIDATION_LOSS
                run.write({label: loss, "validation_tokens": tokens})
                run.say(f"step {run.step}: {label.replace('_', ' ')} {loss:.4f} over {tokens:,.0f} tokens")
        return state, hook_state
