"""The loop: restore, step, measure, hooks, stop cleanly. One `Trainer` is one run on one set of processes."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxtrain.data import DataConfig
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.objectives.sums import Sums
from jaxtrain.optim.optimizers import Optimizer, evaluation_params, transformation
from jaxtrain.shapes import ParamTree
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.evaluation import evaluate
from jaxtrain.train.feed import Feed
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.gradients import Accumulate
from jaxtrain.train.hooks import Checkpoint, Hook
from jaxtrain.train.metrics import Metrics, Writer
from jaxtrain.train.phases import Phase, Span, spans, total_steps
from jaxtrain.train.progress import Bar, Speed, model_flops_utilization
from jaxtrain.train.state import TrainState, abstract_model, abstract_state, create_state
from jaxtrain.train.step import Objective, make_evaluation_step, make_train_step


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Result(NamedTuple):
    """How a run ended: after its last step, or stopped by a signal and ready to be resumed."""

    state: TrainState
    step: int
    finished: bool
    numbers: dict[str, float]  # the last of everything measured


@dataclasses.dataclass(kw_only=True)
class Trainer:
    """What a run is made of; `train` runs it. Also the view of the run that its hooks have (hooks.base.RunView)."""

    model: DecoderConfig
    data: DataConfig
    objective: Objective
    optimizer: Optimizer
    phases: tuple[Phase, ...]
    mesh: MeshConfig
    hooks: tuple[Hook, ...]
    gradients: Accumulate
    clip_norm: float | None
    seed: int
    max_skipped_steps: int
    writers: tuple[Writer, ...]
    folder: RunFolder
    devices: list[jax.Device] | None = None
    profile_steps: int = 0

    def __post_init__(self):
        self.hooks = tuple(sorted(self.hooks, key=lambda hook: hook.order))
        self.total_steps = total_steps(self.phases)
        self.graph, _, self.names = abstract_model(self.model)
        self.step, self.is_last = 0, False
        self.numbers: dict[str, float] = {}
        self._own: dict[str, ParamTree] = {}
        self._stop = threading.Event()
        self._evaluate = make_evaluation_step(self.graph, self.objective)
        retention = next((hook.retention for hook in self.hooks if isinstance(hook, Checkpoint)), None)
        self.checkpoints = Checkpoints(self.folder.checkpoints, retention) if retention else None

    # -- the run ------------------------------------------------------------------------------------------------

    def train(self) -> Result:
        """Run all phases from the latest sound checkpoint, or from the start."""
        restored = self.checkpoints.latest_sound() if self.checkpoints else None
        start = restored or 0
        state = None
        self.metrics = Metrics(self.folder.path, self.writers, from_step=start, writes=jax.process_index() == 0)
        with Bar(self.total_steps, start=start, shown=jax.process_index() == 0) as self.bar, self._signals():
            for span in spans(self.phases):
                if start < span.end or (start == span.end == self.total_steps):
                    state = self._enter(span, state, restored)
                    state = self._run_phase(span, state)
                    restored = None
                if self._stop.is_set():
                    break
        if self.checkpoints:
            self.checkpoints.close()
        self.metrics.close()
        return Result(state, self.step, self.step == self.total_steps, self.numbers)

    def _enter(self, span: Span, state: TrainState | None, restored: int | None) -> TrainState:
        """Set up a phase: mesh, data, step; create, restore or move the state."""
        self._span, phase = span, span.phase
        self.phase_data = phase.data or self.data
        self._mesh: Mesh = (phase.mesh or self.mesh).build(self.devices)
        rate = (phase.learning_rate or self.optimizer.learning_rate).build(
            phase.steps if phase.learning_rate else self.total_steps
        )
        self._rate = (lambda count: rate(count - span.first)) if phase.learning_rate else rate
        self._tx = transformation(self.optimizer, self._rate, self.names, clip_norm=self.clip_norm)
        target = abstract_state(self.model, self._tx, self.names, self._mesh)
        key = jax.random.key(self.seed)
        if restored is not None:
            state = self.checkpoints.restore_state(restored, target)
            self.checkpoints.discard_after(restored)
        elif state is None:
            state = create_state(self.model, self._tx, self.names, self._mesh, key)
        else:
            state = jax.device_put(state, _layout(target))
        self.step = int(state.step)
        self._enter_hooks(state, restored)
        self._feed = Feed(self.phase_data, phase, seed=self.seed, mesh=self._mesh, rows_before=self._rows_before(span))
        if restored is not None and self.step > span.first:
            self._feed.restore(self.checkpoints.restore_data(restored))
        step = make_train_step(
            self.graph,
            self.objective,
            self.gradients,
            self._tx,
            self._rate,
            dropout=self.model.dropout > 0,
        )
        self._train_step = jax.jit(step, donate_argnums=0)
        self._dropout_key = jax.random.fold_in(key, 1)
        return state

    def _enter_hooks(self, state: TrainState, restored: int | None) -> None:
        for hook in self.hooks:
            fresh = hook.initial_state(state)
            found = self._own.get(hook.name)
            if found is None and restored is not None and fresh:
                target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh)
                found = self.checkpoints.restore_hook(restored, hook.name, target)
            self._own[hook.name] = fresh if found is None else jax.device_put(found, _layout(fresh))

    def _rows_before(self, span: Span) -> int:
        """Count the rows that earlier phases took from the same data at the same length: this one goes on there."""
        same = [
            earlier.phase
            for earlier in spans(self.phases[: span.index])
            if (earlier.phase.data or self.data) == self.phase_data
            and earlier.phase.sequence_length == span.phase.sequence_length
        ]
        return sum(phase.steps * phase.batch_size for phase in same)

    def _run_phase(self, span: Span, state: TrainState) -> TrainState:
        self._speed = Speed()
        running: Running | None = None
        with jax.set_mesh(self._mesh):
            while self.step < span.end and not self._stopping():
                with self._profiler(span):
                    state, metrics = self._train_step(state, next(self._feed), self._dropout_key)
                if running:  # the device works on this step while the host reads the one before
                    self._finish(running, span)
                self.step += 1
                self.is_last = self.step == self.total_steps
                running = self._running = Running(self.step, metrics, {})
                state = self._run_hooks(state)
            if running:
                self._finish(running, span)
            if self._stop.is_set() and not self.is_last and self.checkpoints:
                self.save(state)
        return state

    def _run_hooks(self, state: TrainState) -> TrainState:
        for hook in self.hooks:
            state, self._own[hook.name] = hook.after_step(self, state, self._own[hook.name])
        if self.checkpoints:
            self.checkpoints.check()
        return state

    def _finish(self, running: "Running", span: Span) -> None:
        """Wait for a step, then measure, write and check it."""
        numbers = {name: float(value) for name, value in running.metrics.items()}
        tokens_per_second = self._speed.step_done(span.phase.tokens_per_step)
        if running.numbers:
            self._speed.pause()  # the step after it waited for a hook
        if tokens_per_second is not None:
            numbers["tokens_per_second"] = tokens_per_second
            mfu = model_flops_utilization(
                tokens_per_second, self.model.flops_per_token(span.phase.sequence_length), self._mesh.size
            )
            numbers |= {} if mfu is None else {"mfu": mfu}
        self.numbers |= numbers | running.numbers
        self.metrics.write(running.step, numbers | running.numbers)
        self.bar.update(running.step, numbers)
        self._check_finite(running.step, int(numbers["skipped_in_a_row"]), span)

    def _check_finite(self, step: int, in_a_row: int, span: Span) -> None:
        if in_a_row >= self.max_skipped_steps:
            raise NonFiniteError(
                f"step {step}: loss or gradient not finite in {in_a_row} steps in a row; the parameters are those of "
                f"step {step - in_a_row}. The last such step saw {self._feed.describe(step - 1 - span.first)}"
            )

    def _profiler(self, span: Span) -> contextlib.AbstractContextManager:
        first = span.first + 2  # past compilation
        if not first <= self.step < first + self.profile_steps:
            return contextlib.nullcontext()
        return jax.profiler.trace(str(self.folder.path / "profile"))

    # -- stopping -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop after the step at hand on SIGTERM and on Ctrl-C; a second Ctrl-C interrupts at once."""

        def stop(number, frame):
            self._stop.set()
            signal.signal(signal.SIGINT, signal.default_int_handler)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stopping(self) -> bool:
        """Tell whether any process was asked to stop: one decision for all of them."""
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(self._stop.is_set())).any():
            self._stop.set()
        return self._stop.is_set()

    # -- what hooks see -----------------------------------------------------------------------------------------

    def evaluate(self, params: ParamTree, *, batches: int) -> Sums:
        phase = self._span.phase
        return evaluate(
            self._evaluate,
            params,
            self.phase_data,
            batch_size=phase.batch_size,
            sequence_length=phase.sequence_length,
            batches=batches,
            mesh=self._mesh,
        )

    def sample(self, params: ParamTree, prompt: str, *, tokens: int, temperature: float) -> str:
        tokenizer = self.phase_data.tokenizer
        ids = tokenizer.encode(prompt).tolist()
        sampling = Sampling(temperature=temperature)
        key = jax.random.fold_in(jax.random.key(self.seed), self.step)
        [new] = generate(
            self.graph,
            params,
            [ids],
            tokens=tokens,
            sampling=sampling,
            key=key,
            stop_token=tokenizer.end_of_document_id,
        )
        text = tokenizer.decode(ids + new)
        if jax.process_index() == 0:
            with self.folder.samples.open("a", encoding="utf-8") as file:
                file.write(f"--- step {self.step} ---\n{text}\n")
        return text

    def save(self, state: TrainState) -> None:
        hooks = {name: own for name, own in self._own.items() if own}
        data = {"phase": self._span.index, "iterator": self._feed.state()}
        self.checkpoints.save(self.step, Snapshot(state, data, hooks))

    def write(self, numbers: dict[str, float]) -> None:
        self._running.numbers.update(numbers)

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False)

    def evaluation_params(self, state: TrainState) -> dict[str, ParamTree]:
        own = {hook.name: hook.averaged_params(self._own[hook.name]) for hook in self.hooks}
        plain = evaluation_params(self.optimizer, state.opt_state, state.params)
        return {"": plain} | {name: params for name, params in own.items() if params is not None}


class Running(NamedTuple):
    """A step that was started: its metrics, still on the device, and what hooks measured after it."""

    step: int
    metrics: dict[str, jax.Array]
    numbers: dict[str, float]


def _layout(tree):
    return jax.tree.map(lambda x: x.sharding, tree)
