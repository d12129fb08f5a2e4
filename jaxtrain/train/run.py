"""A run in one of its phases: what the loop works with, and what its hooks see of it (hooks.base.RunView)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Key

from jaxtrain.data import DataConfig
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.optim.base import evaluation_params
from jaxtrain.shapes import ModelState
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.evaluation import Evaluation, Read, ValidationRows, evaluate
from jaxtrain.train.feed import Feed
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks.states import HookStates
from jaxtrain.train.phases import Span
from jaxtrain.train.program import Program, Recipe
from jaxtrain.train.recorder import Recorder
from jaxtrain.train.routed import by_layer, counting_step, numbers, written
from jaxtrain.train.state import TrainState
from jaxtrain.train.stopping import Stop
from jaxtrain.train.writers.base import Numbers

MOST_UNSAVED_SECONDS = 600.0  # of a run whose hooks save nothing before its last step


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class RunningPhase(NamedTuple):
    """A phase set up on its mesh."""

    span: Span
    data: DataConfig
    feed: Feed
    validation: Callable[[], Mapping[str, ValidationRows]]
    program: Program


@dataclasses.dataclass(kw_only=True)
class Run:
    """`step` counts the steps made, `saved` is the newest with a checkpoint; nothing else changes in a phase."""

    recipe: Recipe
    graph: nnx.GraphDef
    evaluation_step: Callable
    phase: RunningPhase
    recorder: Recorder
    checkpoints: Checkpoints
    hooks: HookStates
    stop: Stop
    folder: RunFolder
    taken: dict  # rows of the data, by stream
    key: Key[Array, ""]
    max_skipped_steps: int
    saves_by_time: bool
    step: int
    saved: int | None

    @property
    def is_last(self) -> bool:
        return self.step == self.recipe.total_steps

    @property
    def measured(self) -> Numbers:
        return self.recorder.added

    @property
    def save_is_due(self) -> bool:
        """Whether a kill would lose too much by now, on the clock of this process."""
        is_late = self.checkpoints.seconds_since_save >= MOST_UNSAVED_SECONDS
        return self.saves_by_time and is_late and self.step > (self.saved or 0)

    def finish_step(self) -> None:
        """Wait for the step that is being recorded, if one is; write what it measured and check it."""
        if (finished := self.recorder.finish()) is None:
            return
        step, numbers = finished
        in_a_row = int(numbers["skipped_in_a_row"])
        if in_a_row >= self.max_skipped_steps:
            raise NonFiniteError(
                f"step {step}: loss or gradient not finite in {in_a_row} steps in a row; the parameters are those of "
                f"step {step - in_a_row}. The last such step saw {self.phase.feed.describe(ago=self.step - step)}"
            )

    def evaluate(self, model: ModelState, *, batches: int) -> dict[str, Evaluation]:
        self.recorder.interrupted()
        return {
            name: evaluate(
                self.evaluation_step,
                self.recipe.objective_of(self.phase.span.phase),
                model,
                validation,
                batch_size=self.phase.span.phase.batch_size,
                batches=batches,
                mesh=self.phase.program.mesh,
            )
            for name, validation in self.phase.validation().items()
        }

    def count_routing(self, model: ModelState, *, batches: int) -> None:
        self.recorder.interrupted()
        mesh, size = self.phase.program.mesh, self.phase.span.phase.batch_size
        step = counting_step(self.graph, mesh)
        with jax.set_mesh(mesh):
            counted = (
                step(model, batch)
                for validation in self.phase.validation().values()
                for _, batch in Read(validation, batch_size=size, batches=batches, mesh=mesh)
            )
            layers = by_layer(counted, self.recipe.model.stacks)
        self.write(numbers(layers))
        if jax.process_index() == 0:
            with self.stop.reporting():
                self.folder.add_routing(self.step, written(layers))

    def sample(self, model: ModelState, prompt: str, *, tokens: int, temperature: float) -> str:
        tokenizer = self.phase.data.tokenizer
        self.recorder.interrupted()
        ids = tokenizer.encode_prompt(prompt)
        [new] = generate(
            self.graph,
            model,
            [ids],
            tokens=tokens,
            sampling=Sampling(temperature=temperature),
            key=jax.random.fold_in(self.key, self.step),
            stop_token=tokenizer.end_of_document_id,
        )
        text = tokenizer.decode(ids + new)
        if jax.process_index() == 0:
            with self.stop.reporting():
                self.folder.add_sample(self.step, text)
        return text

    def save(self, state: TrainState) -> None:
        if self.saved == self.step:
            return
        measured = self.measured
        with self.stop.reporting():
            self.checkpoints.begin(self.step)  # before its line: if killed between the two, the run begins anew
        self.finish_step()  # writes its line before the checkpoint, so that a run resumed from here lacks none
        self.recorder.flush()
        with self.stop.reporting():
            self.checkpoints.check(wait=True)
        snapshot = Snapshot(state, dict(self.taken), self.hooks.to_save(), self.hooks.end(), self.phase.feed.stream)
        with self.stop.reporting():  # apart: all processes must save, also where the save before has failed
            self.checkpoints.save(self.step, snapshot, measured)
        self.saved = self.step
        self.recorder.interrupted()

    def write(self, numbers: Numbers) -> None:
        self.recorder.add(numbers)

    def say(self, text: str) -> None:
        self.recorder.say(text)

    def evaluation_models(self, state: TrainState) -> dict[str, ModelState]:
        plain = evaluation_params(self.recipe.optimizer, state.opt_state, state.params)
        averages = {"": plain} | self.hooks.averages()
        return {name: state.model._replace(params=params) for name, params in averages.items()}
