"""The loop: restore, step, measure, hooks, stop cleanly. One `Trainer` is one run on one set of processes."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import optax

from jaxtrain.data import DataConfig
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.base import transformation
from jaxtrain.shapes import ParamTree
from jaxtrain.train.checkpoint import Checkpoints, Retention
from jaxtrain.train.evaluation import ValidationSet, validation_sets
from jaxtrain.train.feed import Feed, rows_taken
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Hook
from jaxtrain.train.hooks.base import Saving
from jaxtrain.train.hooks.states import HookStates
from jaxtrain.train.initial import Initial, initial_arrays
from jaxtrain.train.lock import RunLock
from jaxtrain.train.metrics import Metrics
from jaxtrain.train.phases import Span, remaining
from jaxtrain.train.profiling import Profiler
from jaxtrain.train.program import Program, Recipe
from jaxtrain.train.progress import display
from jaxtrain.train.recorder import Recorder
from jaxtrain.train.run import MOST_UNSAVED_SECONDS, Run, RunningPhase
from jaxtrain.train.start import find_start
from jaxtrain.train.state import TrainState, begin, state_of
from jaxtrain.train.step import make_evaluation_step
from jaxtrain.train.stopping import Decision, Stop
from jaxtrain.train.writers.base import Numbers, Writer


class Result(NamedTuple):
    """How a run ended: after its last step, by a hook before that, or stopped by a signal and ready to be resumed."""

    state: TrainState
    step: int
    finished: bool  # whether the same command has nothing left to do
    numbers: Numbers  # the latest value of everything measured
    ended: str | None  # why a hook ended it before its last step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer:
    """What a run is made of; `train` runs it."""

    recipe: Recipe
    data: DataConfig
    initial: Initial
    mesh: MeshConfig
    hooks: tuple[Hook, ...]
    seed: int
    max_skipped_steps: int
    writers: tuple[Writer, ...]
    validation: tuple[ValidationSet, ...]
    folder: RunFolder
    lock: RunLock
    devices: list[jax.Device] | None = None
    profile_steps: int = 0

    def train(self) -> Result:
        """Run all phases, from the newest valid checkpoint if there is one.

        Raises:
            ValueError: another run is in the folder; the checkpoints are all damaged, gone, or of another model.
            SaveError: the run folder could not be written.
            NonFiniteError: `max_skipped_steps` steps in a row had a loss or gradient that is not finite.
        """
        with self.lock:
            start = self.find_start()
            self.check_start(start)
            return self.train_from(start)

    def find_start(self) -> int | None:
        """Return the step that `train` goes on from, None for a new run. Change nothing. Raises what `train` raises."""
        return find_start(self.folder, first_save=self._first_save)

    def check_start(self, start: int | None) -> None:
        """Raise ValueError where a run cannot begin, or go on from `start`. Nothing is written.

        A new run needs weights that fit its model, and any run the hints of a teacher whose logits are stored.
        """
        if start is None:
            self.initial.check(dataclasses.replace(self.recipe.model, teacher=None))
        self._check_hints(start)

    def _check_hints(self, start: int | None) -> None:
        """Raise ValueError if a teacher's stored hints are not those of all rows that the run takes.

        A run that goes on from `start` may have taken other batches before than its phases say now.
        """
        teacher = self.recipe.model.teacher
        if teacher is None or not teacher.given:
            return
        before = {}
        if start is not None:
            with Checkpoints(self.folder.checkpoints) as checkpoints:
                before = checkpoints.restore_data(start)
        for taken in rows_taken(self.recipe.phases, self.data, self.seed, start=start or 0, before=before):
            teacher.hints(taken.stream, taken.rows)

    def check_fits(self, start: int) -> None:
        """Raise ValueError if the checkpoint that `find_start` returned is of another model or optimizer."""
        recipe = self.recipe
        _, model, axes = abstract_model(recipe.model)
        tx = transformation(recipe.optimizer, optax.constant_schedule(0.0), axes.params, clip_norm=recipe.clip_norm)
        with Checkpoints(self.folder.checkpoints) as checkpoints:
            checkpoints.check_fits(start, jax.eval_shape(lambda model: state_of(model, tx), model))

    @property
    def _saving(self) -> list[Saving]:
        return [hook.saving for hook in self.hooks if hook.saving]

    @property
    def _first_save(self) -> int:
        """The first step that is saved whatever the clock says: the last one is always."""
        return min([self.recipe.total_steps, *(saving.every_steps for saving in self._saving)])

    @property
    def saves_by_time(self) -> bool:
        """Whether hooks save nothing before the last step: a run that is killed would begin anew."""
        return self._first_save >= self.recipe.total_steps

    def train_from(self, start: int | None) -> Result:
        """Run the phases from `start`, which `find_start` returned, with the lock held since then."""
        stop = Stop()
        with self.opened(start, stop) as opened:
            with stop:
                for span in remaining(self.recipe.phases, start or 0):
                    run = opened.enter(span)
                    opened.state = make_steps(run, opened.state, opened.profiler)
                    if opened.leave(run):
                        break
            return opened.result(run)

    @contextlib.contextmanager
    def opened(self, start: int | None, stop: Stop, *, name: str = "") -> Iterator["Opened"]:
        """Open the files of the run, to go on from `start`. At the end, wait until all is written.

        A run of several that are trained together has a `name`, which its lines begin with.
        """
        retention = next((saving.retention for saving in self._saving), Retention())
        with Checkpoints(self.folder.checkpoints, retention) as checkpoints:
            checkpoints.clear_after(start)
            taken = {} if start is None else checkpoints.restore_data(start)
            profiler = Profiler(self.folder.profile, self.profile_steps)
            with self._recorder(start, stop, name) as recorder, profiler:
                yield Opened(self, start, stop, checkpoints, recorder, profiler, taken)
            with stop.reporting():
                checkpoints.check(wait=True)
            stop.settle()

    def _recorder(self, start: int | None, stop: Stop, name: str) -> Recorder:
        writes, total_steps = jax.process_index() == 0, self.recipe.total_steps
        if writes:
            with stop.reporting():
                self.folder.cut_samples(step=start or 0)
                self.folder.cut_routing(step=start or 0)
        metrics = Metrics(self.folder.path, self.writers, from_step=start or 0, writes=writes, report=stop.report)
        recorder = Recorder(metrics, display(total_steps, start=start or 0, shown=writes, name=name), name)
        if start is not None and start >= total_steps:
            recorder.say(f"the run has made its {total_steps} steps: nothing is left to do")
        elif start:
            recorder.say(f"going on from the checkpoint of step {start}")
        if self.saves_by_time and (start or 0) < total_steps:
            minutes = f"{MOST_UNSAVED_SECONDS / 60:g} minutes"
            recorder.say(f"no hook saves before the last step: a checkpoint is saved every {minutes}")
        return recorder

    def phase(self, span: Span, taken: dict, recorder: Recorder) -> RunningPhase:
        """Build the mesh, data, optimizer and step of a phase."""
        phase = span.phase
        data, mesh = phase.data or self.data, (phase.mesh or self.mesh).build(self.devices)
        feed = Feed(data, phase, seed=self.seed, mesh=mesh, taken=taken, teacher=self.recipe.model.teacher)
        if feed.text_changed:
            recorder.say(
                "the text of the data has changed since the checkpoint, or an older version gave it another name: "
                "it is read from its first row"
            )
        elif feed.is_new:
            recorder.say("no rows have been taken of the data as they are read now: they begin at their first")
        teaches = self.recipe.objective_of(phase).reads_teacher
        model = self.recipe.model if teaches else dataclasses.replace(self.recipe.model, teacher=None)
        recorder.enter_phase(
            tokens_per_step=phase.tokens_per_step,
            flops_per_token=model.flops_per_token(phase.sequence_length),
            devices=mesh.size,
        )
        length = phase.sequence_length
        # Opened when an evaluation first needs it, from the text that the feed has opened.
        validation = functools.cache(
            lambda: validation_sets(data, self.validation, sequence_length=length, stores=feed.stores)
        )
        return RunningPhase(span, data, feed, validation, self.recipe.program(span, mesh))

    def enter(
        self,
        program: Program,
        state: TrainState | None,
        start: int | None,
        checkpoints: Checkpoints,
    ) -> TrainState:
        """Return the state that a phase begins with: created, restored, or moved from the mesh of the phase before."""
        target = program.target
        if state is not None:
            return jax.device_put(state, _layout(target))
        if start is None:
            model = initial_arrays(self.initial, self.recipe.model, program.mesh, jax.random.key(self.seed))
            return begin(model, program.tx, target)
        if checkpoints.has_progress(start):
            return checkpoints.restore_state(start, target)
        model = checkpoints.restore_model(start, target.model)  # a model alone, such as an imported one
        return begin(model, program.tx, target)


class Opened:
    """A run whose files are open. `state` is the training state, between two phases that of the end of the first."""

    def __init__(
        self,
        trainer: Trainer,
        start: int | None,
        stop: Stop,
        checkpoints: Checkpoints,
        recorder: Recorder,
        profiler: Profiler,
        taken: dict,
    ):
        self.profiler = profiler
        self._trainer, self._start, self._stop = trainer, start, stop
        self._checkpoints, self._recorder, self._taken = checkpoints, recorder, taken
        self._hooks, self._saved = HookStates(trainer.hooks), start
        self._state: TrainState | None = None
        self._graph, _, _ = abstract_model(trainer.recipe.model)
        self._evaluation_step = functools.cache(functools.partial(make_evaluation_step, self._graph))

    @property
    def state(self) -> TrainState:
        assert self._state is not None, "a run has at least one phase"
        return self._state

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state = state

    def enter(self, span: Span) -> Run:
        """Return the run in a phase, and lay its state out for it."""
        trainer, checkpoints, start = self._trainer, self._checkpoints, self._start
        phase = trainer.phase(span, self._taken, self._recorder)
        self.state = trainer.enter(phase.program, self._state, start, checkpoints)
        self._hooks.enter(self.state, functools.partial(_restore_hook, checkpoints, start))
        return Run(
            recipe=trainer.recipe,
            graph=self._graph,
            evaluation_step=self._evaluation_step(trainer.recipe.objective_of(span.phase)),
            phase=phase,
            recorder=self._recorder,
            checkpoints=checkpoints,
            hooks=self._hooks,
            stop=self._stop,
            folder=trainer.folder,
            taken=self._taken,
            key=jax.random.key(trainer.seed),
            max_skipped_steps=trainer.max_skipped_steps,
            saves_by_time=trainer.saves_by_time,
            step=int(self.state.step),
            saved=self._saved,
        )

    def leave(self, run: Run) -> bool:
        """Take note of what a phase has saved. Return whether the run ends here, before the phases behind it."""
        self._saved = run.saved
        if reason := self._hooks.end():
            self._recorder.say(f"ended after step {run.step}: {reason}")
        return run.step < run.phase.span.end or bool(reason)

    def result(self, run: Run) -> Result:
        """Return how the run has ended."""
        finished = run.step >= self._trainer.recipe.total_steps
        ended = None if finished else self._hooks.end()
        return Result(self.state, run.step, finished or ended is not None, self._recorder.latest, ended)


def make_steps(run: Run, state: TrainState, profiler: Profiler) -> TrainState:
    """Make the steps of a phase. Where the run ends, at its last step or before, save and return."""
    program, feed, end = run.phase.program, run.phase.feed, run.phase.span.end
    key = jax.random.fold_in(run.key, 1)  # the run's key itself has initialised the parameters
    with jax.set_mesh(program.mesh):
        while run.step < end and not run.hooks.end():
            decision = run.stop.decided(save=run.save_is_due)
            if decision is Decision.STOP:
                break
            if decision is Decision.SAVE:
                run.save(state)
            with jax.profiler.StepTraceAnnotation("train", step_num=run.step):
                state, measured = program.step(state, next(feed), key)
            run.step += 1
            run.finish_step()  # the step before, while the devices work on this one
            run.recorder.begin(run.step, measured)
            state = run.hooks.after_step(run, state)
            profiler.step_done(state)
            with run.stop.reporting():
                run.checkpoints.check()
        if run.step < end or run.is_last or run.hooks.end():
            run.save(state)
        run.finish_step()
    return state


def _restore_hook(checkpoints: Checkpoints, start: int | None, name: str, shapes: ParamTree) -> ParamTree | None:
    return None if start is None else checkpoints.restore_hook(start, name, shapes)


def _layout(tree):
    return jax.tree.map(lambda x: x.sharding, tree)
