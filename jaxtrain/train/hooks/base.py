"""The base class of hooks, and what a hook may ask of its run."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.technique import Technique
from jaxtrain.train.checkpoint import Retention
from jaxtrain.train.evaluation import Evaluation
from jaxtrain.train.state import TrainState

# The order of hooks within a step: averages first, then what measures, what judges the numbers, and checkpoints.
AVERAGING, LOOKING, JUDGING, SAVING = range(4)


class RunView(Protocol):
    """What hooks see of the run. `step` is the number of steps made, `is_last` whether none follows."""

    @property
    def step(self) -> int: ...

    @property
    def is_last(self) -> bool: ...

    @property
    def measured(self) -> Mapping[str, float]:
        """The numbers that hooks have added to the metrics of this step so far."""

    def evaluate(self, model: ModelState, *, batches: int) -> Mapping[str, Evaluation]:
        """Evaluate over the first `batches` batches of each validation set, or over all if there are fewer.

        They are by the names of the sets; the held-out part of the training text is HELD_OUT.
        """

    def count_routing(self, model: ModelState, *, batches: int) -> None:
        """Write where the tokens of the first `batches` batches of each validation set go: files and numbers."""

    def sample(self, model: ModelState, prompt: str, *, tokens: int, temperature: float) -> str:
        """Return the prompt and its continuation."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of this step in the background."""

    def write(self, numbers: dict[str, float]) -> None:
        """Add numbers to the metrics of this step."""

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""

    def evaluation_models(self, state: TrainState) -> dict[str, ModelState]:
        """Return the models to evaluate: the one in training under "", and averages under the names of their hooks."""


class Saving(NamedTuple):
    """When a hook saves checkpoints, and which of them are kept."""

    every_steps: int
    retention: Retention


class Hook(Technique):
    """A frozen dataclass that is called after every step on the host. Every process makes the same decisions.

    `name` is unique in a run and labels the hook's state in checkpoints. `order` is one of the constants above.
    `on_host`: the hook's state is in host memory.
    """

    __slots__ = ()
    order: ClassVar[int] = LOOKING
    on_host: ClassVar[bool] = False

    @property
    def copies(self) -> int:
        """The copies of the parameters in the hook's state."""
        return 0

    @property
    def decoded_tokens(self) -> int:
        """The most tokens of a text that the hook samples."""
        return 0

    @property
    def continued(self) -> str | None:
        """The prompt that the hook continues; None if it samples nothing."""
        return None

    @property
    def validation_batches(self) -> int:
        """The batches of an evaluation that the hook asks for."""
        return 0

    @property
    def judges_by(self) -> str | None:
        """The number, measured by another hook, that the hook goes by; None if by none."""
        return None

    def measures(self, averages: Sequence[str], validation: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the numbers that it measures.

        The run keeps `averages` beside the model, and evaluates on `validation`: sets, and the sources of mixtures.
        """
        return ()

    @property
    def saving(self) -> Saving | None:
        """When the hook saves checkpoints; None if it saves none."""
        return None

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        """Look at, or replace, the training state; return it and the hook's new state."""

    def check(self, where: str, model: DecoderConfig, tokenizer: Tokenizer) -> None:
        """Raise ValueError, now, for what would end the run when the hook is due. The hook's key is `where`."""

    def initial_state(self, state: TrainState) -> ParamTree:
        """Return what the hook carries from step to step and into checkpoints: a tree of arrays, or {} for nothing."""
        return {}

    def ends(self, hook_state: ParamTree) -> str | None:
        """Return why the run ends now, before its last step; None to go on. It is asked before every step."""
        return None

    def averaged_params(self, hook_state: ParamTree) -> ParamTree | None:
        """Return parameters to evaluate and export in place of the model's, if the hook makes any."""
        return None


def due(run: RunView, every_steps: int) -> bool:
    """Tell whether a hook that acts every `every_steps` steps, and at the end, acts now."""
    return run.is_last or run.step % every_steps == 0


def check_interval(hook) -> None:
    if hook.every_steps < 1:
        raise ValueError(f"every_steps={hook.every_steps}: must be at least 1")
