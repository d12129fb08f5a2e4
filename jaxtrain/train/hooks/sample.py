"""A few lines of what the model would write."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.models.generate import Sampling
from jaxtrain.shapes import ParamTree
from jaxtrain.train.hooks.base import LOOKING, RunView, StatelessHook, check_interval, due
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(StatelessHook):
    """Continue a prompt every so many steps and at the end."""

    every_steps: int
    prompt: str
    tokens: int = 200
    temperature: float = 0.8
    order: ClassVar[int] = LOOKING

    def __post_init__(self):
        check_interval(self)
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens}: must be at least 1")
        Sampling(temperature=self.temperature)  # which says where it is out of range

    @property
    def name(self) -> str:
        return "sample"

    def after_step(self, run: RunView, state: TrainState, own: ParamTree) -> tuple[TrainState, ParamTree]:
        if due(run, self.every_steps):
            model = list(run.evaluation_models(state).values())[0]
            text = run.sample(model, self.prompt, tokens=self.tokens, temperature=self.temperature)
            run.say(f"step {run.step}: sample\n{text}\n")
        return state, own
