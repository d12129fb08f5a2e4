"""The contract of a hook, and what a hook may ask of the run it is in."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple, Protocol

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.technique import Technique
from jaxtrain.train.checkpoint import Retention
from jaxtrain.train.evaluation import Evaluation
from jaxtrain.train.state import TrainState

AVERAGING, LOOKING, SAVING = range(3)  # the order of hooks within a step: averages first, checkpoints last


class RunView(Protocol):
    """What hooks see of the run. `step` is the number of steps made, `is_last` whether none follows."""

    step: int
    is_last: bool

    def evaluate(self, model: ModelState, *, batches: int) -> Evaluation:
        """Evaluate over the first batches of validation, or all there are."""

    def sample(self, model: ModelState, prompt: str, *, tokens: int, temperature: float) -> str:
        """Return the prompt and its continuation."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of this step in the background."""

    def write(self, numbers: dict[str, float]) -> None:
        """Add numbers to the metrics of this step."""

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""

    def evaluation_models(self, state: TrainState) -> dict[str, ModelState]:
        """Return the models worth evaluating: the one in training under "", with averages under their hook's name."""


class Saving(NamedTuple):
    """When a hook saves, and what is kept of what it saved."""

    every_steps: int
    retention: Retention


class Hook(Technique):
    """A frozen dataclass that is called after every step on the host. Every process makes the same decisions.

    `name` is unique in a run and labels the hook's state in checkpoints; `order` is one of the constants above.
    `copies` counts the copies of the parameters in its state, `on_host` tells where that lies, `decoded_tokens` and
    `validation_batches` what it asks of the run, `saving` when it saves.
    """

    __slots__ = ()
    order: ClassVar[int] = LOOKING
    copies: ClassVar[int] = 0
    on_host: ClassVar[bool] = False
    decoded_tokens: ClassVar[int] = 0
    validation_batches: ClassVar[int] = 0
    saving: ClassVar[Saving | None] = None

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        """Look at, or replace, the training state; return it and the hook's new state."""

    def check(self, where: str, model: DecoderConfig, tokenizer: Tokenizer) -> None:
        """Raise ValueError for what would otherwise end the run when the hook is due; its key is `where`."""

    def initial_state(self, state: TrainState) -> ParamTree:
        """Return what the hook carries from step to step and into checkpoints: a tree of arrays, or {} for nothing."""
        return {}

    def averaged_params(self, hook_state: ParamTree) -> ParamTree | None:
        """Return parameters to evaluate and export in place of the model's, if the hook makes any."""
        return None


def due(run: RunView, every_steps: int) -> bool:
    """Tell whether something that happens every so many steps, and at the end, happens now."""
    return run.is_last or run.step % every_steps == 0


def check_interval(hook) -> None:
    if hook.every_steps < 1:
        raise ValueError(f"every_steps={hook.every_steps}: must be at least 1")
