"""Samples of the model's text."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.generate import Sampling, check_decoding
from jaxtrain.shapes import ParamTree
from jaxtrain.train.hooks.base import Hook, RunView, check_interval, due
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Hook):
    """Continue a prompt every `every_steps` steps and at the end."""

    every_steps: int
    prompt: str
    tokens: int = 200
    temperature: float = 0.8
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        check_interval(self)
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens}: must be at least 1")
        Sampling(temperature=self.temperature)  # raises ValueError where it is out of range

    @property
    def name(self) -> str:
        return "sample"

    @property
    def decoded_tokens(self) -> int:
        return self.tokens

    @property
    def continued(self) -> str:
        return self.prompt

    def check(self, where: str, model: DecoderConfig, tokenizer: Tokenizer) -> None:
        prompt = len(tokenizer.encode_prompt(self.prompt))
        if not prompt:
            raise ValueError(f"{where}.prompt={self.prompt!r}: give at least one token to continue from")
        if prompt + self.tokens > model.max_length:
            raise ValueError(
                f"{where}.tokens={self.tokens} after a prompt of {prompt} exceed model.max_length={model.max_length}: "
                f"shorten them or raise max_length"
            )
        try:
            check_decoding(model, shortest=prompt, longest=prompt, tokens=self.tokens)
        except ValueError as error:
            raise ValueError(
                f"{where}.tokens={self.tokens} after a prompt of {prompt}: {error}; or remove the hook"
            ) from error

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if due(run, self.every_steps):
            model = list(run.evaluation_models(state).values())[0]
            text = run.sample(model, self.prompt, tokens=self.tokens, temperature=self.temperature)
            run.say(f"step {run.step}: sample\n{text}\n")
        return state, hook_state
