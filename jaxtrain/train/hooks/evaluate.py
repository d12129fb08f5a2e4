"""The validation loss, of the model and of every average that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.shapes import ParamTree
from jaxtrain.train.evaluation import VALIDATION_LOSS, Evaluation, described, label
from jaxtrain.train.hooks.base import Hook, RunView, check_interval, due
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate(Hook):
    """Mean loss in nats a token over the first `batches` batches of each validation set, the same ones every time.

    Of a mixture also the loss of each source is measured, and for next tokens the bits a byte of text takes.
    """

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

    def measures(self, averages: Sequence[str], validation: Sequence[str]) -> tuple[str, ...]:
        return tuple(label(VALIDATION_LOSS, on, of) for of in ("", *averages) for on in validation)

    @property
    def validation_batches(self) -> int:
        return self.batches

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if due(run, self.every_steps):
            for of, model in run.evaluation_models(state).items():
                for on, found in run.evaluate(model, batches=self.batches).items():
                    run.write(numbers(found, on, of))
                    name = label(VALIDATION_LOSS, on, of).replace("_", " ")
                    sources = "".join(f"; {source} {part.loss:.4f}" for source, part in found.sources.items())
                    run.say(f"step {run.step}: {name} {described(found)}{sources}")
        return state, hook_state


def numbers(found: Evaluation, on: str, of: str) -> dict[str, float]:
    """Return the numbers of an evaluation `on` a validation set, `of` an average of the weights ("" for no average)."""
    named = {label(VALIDATION_LOSS, on, of): found.loss, label("validation_weight", on): found.weight}
    if found.bits_per_byte is not None:
        named[label("validation_bits_per_byte", on, of)] = found.bits_per_byte
    for name, part in found.sources.items():
        named[label(VALIDATION_LOSS, on, name, of)] = part.loss
    return named
