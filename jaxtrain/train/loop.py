"""The loop: restore, step, measure, hooks, stop cleanly. One `Trainer` is one run on one set of processes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxtrain.data import DataConfig, Rows
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.optim.base import evaluation_params
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.train.checkpoint import Checkpoints, Retention, Snapshot
from jaxtrain.train.evaluation import Evaluation, evaluate, validation_rows
from jaxtrain.train.feed import Feed
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Hook
from jaxtrain.train.hooks.states import HookStates
from jaxtrain.train.lock import RunLock
from jaxtrain.train.metrics import Metrics
from jaxtrain.train.phases import Span, remaining
from jaxtrain.train.profiling import Profiler
from jaxtrain.train.program import Program, Recipe
from jaxtrain.train.progress import display
from jaxtrain.train.recorder import Recorder
from jaxtrain.train.start import find_start
from jaxtrain.train.state import TrainState, create_state, state_of
from jaxtrain.train.step import make_evaluation_step
from jaxtrain.train.stopping import Stop
from jaxtrain.train.writers.base import Numbers, Writer


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Result(NamedTuple):
    """How a run ended: after its last step, or stopped by a signal and ready to be resumed."""

    state: TrainState
    step: int
    finished: bool
    numbers: Numbers  # the last of everything measured


class Work(NamedTuple):
    """A phase set up on its mesh."""

    span: Span
    data: DataConfig
    feed: Feed
    validation: Callable[[], Rows]
    program: Program


@dataclasses.dataclass(kw_only=True)
class Trainer:
    """What a run is made of; `train` runs it. Also the view of the run that its hooks have (hooks.base.RunView)."""

    recipe: Recipe
    data: DataConfig
    mesh: MeshConfig
    hooks: tuple[Hook, ...]
    seed: int
    max_skipped_steps: int
    writers: tuple[Writer, ...]
    folder: RunFolder
    lock: RunLock
    devices: list[jax.Device] | None = None
    profile_steps: int = 0

    def __post_init__(self):
        self.step, self.total_steps = 0, self.recipe.total_steps
        self._saving = [hook.saving for hook in self.hooks if hook.saving]
        self.graph, _, self.axes = abstract_model(self.recipe.model)
        self._key = jax.random.key(self.seed)
        self._dropout_key = jax.random.fold_in(self._key, 1)
        self._evaluate = make_evaluation_step(self.graph, self.recipe.objective)

    # -- the run ------------------------------------------------------------------------------------------------

    def train(self) -> Result:
        """Run all phases, from the newest sound checkpoint if there is one.

        Raises:
            ValueError: another run is in the folder; the checkpoints are all damaged, gone, or of another model.
            SaveError: the run folder could not be written.
            NonFiniteError: `max_skipped_steps` steps in a row had a loss or gradient that is not finite.
        """
        with self.lock:
            return self.train_from(self.find_start())

    def find_start(self) -> int | None:
        """Return the step that `train` goes on from, None for a run that begins; change nothing. Raises as it does."""
        first_save = min((saving.every_steps for saving in self._saving), default=1)
        return find_start(self.folder, first_save=min(first_save, self.total_steps))

    def train_from(self, start: int | None) -> Result:
        """Run the phases from where `find_start` says, with the lock held since."""
        retention = next((saving.retention for saving in self._saving), Retention())
        with Checkpoints(self.folder.checkpoints, retention) as self._checkpoints:
            self._checkpoints.clear_after(start)
            self._saved = start
            self._taken = {} if start is None else self._checkpoints.restore_data(start)
            self._hooks, state, self._stop = HookStates(self.hooks), None, Stop()
            with self._open_recorder(start) as self._recorder, self._open_profiler() as self._profiler, self._stop:
                for span in remaining(self.recipe.phases, start or 0):
                    self._work = self._set_up(span)
                    state = self._enter(state, start)
                    state = self._run_phase(state)
                    if self.step < span.end:
                        break
            with self._stop.reporting():
                self._checkpoints.check(wait=True)
            self._stop.settle()
        return Result(state, self.step, self.step >= self.total_steps, self._recorder.latest)

    def _run_phase(self, state: TrainState) -> TrainState:
        """Make the steps of the phase at hand, or those until the run is asked to stop, and then save."""
        work = self._work
        span, feed = work.span, work.feed
        with jax.set_mesh(work.program.mesh):
            while self.step < span.end and not self._stop.decided():
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    state, measured = work.program.step(state, next(feed), self._dropout_key)
                self.step += 1
                self._finish_step()  # the one before: meanwhile the devices work on this one
                self._recorder.begin(self.step, measured)
                state = self._hooks.after_step(self, state)
                self._profiler.step_done(state)
                with self._stop.reporting():
                    self._checkpoints.check()
            self._finish_step()
            if self.step < span.end:
                self.save(state)
        return state

    def _finish_step(self) -> None:
        """Wait for the step that is being recorded, if one is; write what it measured and check it."""
        if (finished := self._recorder.finish()) is None:
            return
        step, numbers = finished
        in_a_row = int(numbers["skipped_in_a_row"])
        if in_a_row >= self.max_skipped_steps:
            raise NonFiniteError(
                f"step {step}: loss or gradient not finite in {in_a_row} steps in a row; the parameters are those of "
                f"step {step - in_a_row}. The last such step saw {self._work.feed.describe(ago=self.step - step)}"
            )

    # -- setting up ---------------------------------------------------------------------------------------------

    def _open_recorder(self, start: int | None) -> Recorder:
        writes = jax.process_index() == 0
        if writes:
            with self._stop.reporting():
                self.folder.cut_samples(step=start or 0)
        metrics = Metrics(self.folder.path, self.writers, from_step=start or 0, writes=writes, report=self._stop.report)
        recorder = Recorder(metrics, display(self.total_steps, start=start or 0, shown=writes))
        if start is not None and start >= self.total_steps:
            recorder.say(f"the run has made its {self.total_steps} steps: nothing is left to do")
        elif start:
            recorder.say(f"going on from the checkpoint of step {start}")
        return recorder

    def _open_profiler(self) -> Profiler:
        return Profiler(self.folder.profile, self.profile_steps)

    def _set_up(self, span: Span) -> Work:
        """Build the mesh, data, optimizer and step of a phase."""
        phase = span.phase
        data, mesh = phase.data or self.data, (phase.mesh or self.mesh).build(self.devices)
        feed = Feed(data, phase, seed=self.seed, mesh=mesh, taken=self._taken)
        if feed.text_changed:
            self._recorder.say(
                "the text of the data has changed since the checkpoint, or an older version gave it another name: "
                "it is read from its first row"
            )
        elif feed.is_new:
            self._recorder.say("no rows have been taken of the data as they are read now: they begin at their first")
        self._recorder.enter_phase(
            tokens_per_step=phase.tokens_per_step,
            flops_per_token=self.recipe.model.flops_per_token(phase.sequence_length),
            devices=mesh.size,
        )
        length = phase.sequence_length
        # Where evaluation is asked for, and then once: of the text that the feed has opened.
        validation = functools.cache(lambda: validation_rows(data, sequence_length=length, stores=feed.stores))
        return Work(span, data, feed, validation, self.recipe.program(span, mesh))

    def _enter(self, state: TrainState | None, start: int | None) -> TrainState:
        """Return the state to begin a phase with: created, restored, or moved from the phase before."""
        program, checkpoints = self._work.program, self._checkpoints
        target = program.target
        if state is not None:
            state = jax.device_put(state, _layout(target))
        elif start is None:
            state = create_state(self.recipe.model, program.tx, self.axes, program.mesh, self._key)
        elif checkpoints.has_progress(start):
            state = checkpoints.restore_state(start, target)
        else:  # parameters alone, such as imported ones
            begin = functools.partial(state_of, tx=program.tx)
            model = checkpoints.restore_model(start, target.model)
            state = jax.jit(begin, out_shardings=_layout(target), donate_argnums=0)(model)
        self.step = int(state.step)

        def restore(name: str, shapes: ParamTree) -> ParamTree | None:
            return None if start is None else checkpoints.restore_hook(start, name, shapes)

        self._hooks.enter(state, restore)
        return state

    # -- what hooks see -----------------------------------------------------------------------------------------

    @property
    def is_last(self) -> bool:
        return self.step == self.total_steps

    def evaluate(self, model: ModelState, *, batches: int) -> Evaluation:
        phase = self._work.span.phase
        self._recorder.interrupted()
        return evaluate(
            self._evaluate,
            self.recipe.objective,
            model,
            self._work.validation(),
            batch_size=phase.batch_size,
            batches=batches,
            mesh=self._work.program.mesh,
        )

    def sample(self, model: ModelState, prompt: str, *, tokens: int, temperature: float) -> str:
        tokenizer = self._work.data.tokenizer
        self._recorder.interrupted()
        ids = tokenizer.encode_prompt(prompt)
        [new] = generate(
            self.graph,
            model,
            [ids],
            tokens=tokens,
            sampling=Sampling(temperature=temperature),
            key=jax.random.fold_in(self._key, self.step),
            stop_token=tokenizer.end_of_document_id,
        )
        text = tokenizer.decode(ids + new)
        if jax.process_index() == 0:
            with self._stop.reporting():
                self.folder.add_sample(self.step, text)
        return text

    def save(self, state: TrainState) -> None:
        if self._saved != self.step:
            with self._stop.reporting():
                self._checkpoints.begin(self.step)  # before its line: killed between the two, the run begins anew
            self._finish_step()  # its line comes first, so that a run resumed from here lacks none
            self._recorder.flush()
            with self._stop.reporting():
                self._checkpoints.check(wait=True)
            with self._stop.reporting():  # all processes save, or none: also where the save before has failed
                self._checkpoints.save(self.step, Snapshot(state, dict(self._taken), self._hooks.to_save()))
            self._saved = self.step
            self._recorder.interrupted()

    def write(self, numbers: Numbers) -> None:
        self._recorder.add(numbers)

    def say(self, text: str) -> None:
        self._recorder.say(text)

    def evaluation_models(self, state: TrainState) -> dict[str, ModelState]:
        plain = evaluation_params(self.recipe.optimizer, state.opt_state, state.params)
        averages = {"": plain} | self._hooks.averages()
        return {name: state.model._replace(params=params) for name, params in averages.items()}


def _layout(tree):
    return jax.tree.map(lambda x: x.sharding, tree)
