"""The configuration of a run: everything it needs, checked across its parts before anything is computed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from jaxtrain.data import DataConfig
from jaxtrain.mesh import AXES, MeshConfig, MisfitError
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.objectives.base import Objective
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.base import Optimizer
from jaxtrain.pipeline.placement import nearest
from jaxtrain.ranges import COUNTED, check_integers, check_positive_or_none
from jaxtrain.record.run import check_same, checked_start, files_of, write_record
from jaxtrain.sharding import RULES, IndivisibleError, shardings, undivided
from jaxtrain.train.evaluation import VALIDATION_LOSS, ValidationSet, label, validation_names
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.gradients import Accumulate, Strategy
from jaxtrain.train.hooks import Hook
from jaxtrain.train.hooks.base import AVERAGING
from jaxtrain.train.initial import Initial, Random
from jaxtrain.train.lock import RunLock
from jaxtrain.train.loop import Result, Trainer
from jaxtrain.train.needs import Room, check_run, room_of
from jaxtrain.train.phases import Phase, learning_rate, momentum, spans, total_steps
from jaxtrain.train.program import Recipe
from jaxtrain.train.writers import TensorBoard, Writer

# The keys of the dimensions that mesh axes split.
DIMENSIONS = {
    "repeats": "model.repeats",
    "vocab": "model.vocab_size",
    "kv_heads": "kv_heads",
    "embed": "model.d_model",
    "embed_blocks": "d_model / block",
    "experts": "experts",
    "latent": "latent",
    "mlp": "hidden",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A run. Build one in Python, or fill it from a gin file with the `jaxtrain` command."""

    model: DecoderConfig
    data: DataConfig
    optimizer: Optimizer
    phases: tuple[Phase, ...]
    objective: Objective = NextToken()
    initial: Initial = Random()
    mesh: MeshConfig = MeshConfig()
    hooks: tuple[Hook, ...] = ()
    gradients: Strategy = Accumulate()
    clip_norm: float | None = 1.0
    seed: int = 0
    max_skipped_steps: int = 10
    writers: tuple[Writer, ...] = (TensorBoard(),)
    validation: tuple[ValidationSet, ...] = ()

    def __post_init__(self):
        check_integers(self)
        if not self.phases:
            raise ValueError("phases=(): a run needs at least one Phase")
        if (steps := total_steps(self.phases)) >= COUNTED:
            tokens = sum(phase.steps * phase.tokens_per_step for phase in self.phases)
            raise ValueError(f"phases make {steps:,} steps, of {tokens:,} tokens: a run makes at most {COUNTED - 1:,}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: must be from 0 to 2^63 - 1")
        if self.max_skipped_steps < 1:
            raise ValueError(f"max_skipped_steps={self.max_skipped_steps}: must be at least 1")
        check_positive_or_none(self, "clip_norm")
        if self.model.compute_dtype == "float16":
            raise ValueError(
                "model.compute_dtype='float16': its gradients would underflow, as the loss is not scaled; "
                "use 'bfloat16' or 'float32'"
            )
        names = [hook.name for hook in self.hooks]
        if len(set(names)) < len(names):
            raise ValueError(f"hooks: one of {', '.join(names)} stands twice; each kind of hook runs once")
        for index, phase in enumerate(self.phases):
            where = f"phases[{index}]"
            if phase.sequence_length > self.model.max_length:
                raise ValueError(
                    f"{where}.sequence_length={phase.sequence_length} exceeds "
                    f"model.max_length={self.model.max_length}: shorten the sequences or raise max_length"
                )
            teacher = self.model.teacher and self.model.teacher.model
            if teacher and phase.sequence_length > teacher.max_length:
                raise ValueError(
                    f"{where}.sequence_length={phase.sequence_length} exceeds the teacher's "
                    f"max_length={teacher.max_length}: shorten the sequences"
                )
            vocab_size = (phase.data or self.data).tokenizer.vocab_size
            if vocab_size > self.model.vocab_size:
                raise ValueError(
                    f"the tokenizer has {vocab_size} tokens, model.vocab_size={self.model.vocab_size}: "
                    f"set model.vocab_size to at least {vocab_size}"
                )
            (phase.data or self.data).examples.check(self.model)
            if phase.objective is not None:
                try:
                    phase.objective.check(self.model)
                except ValueError as error:
                    raise ValueError(f"{where}.{error}") from error
        self.objective.check(self.model)
        self._check_tasks()
        self._check_learning_rates()
        self._check_judges()
        for index, hook in enumerate(self.hooks):
            for data_config in self.datasets:
                hook.check(f"hooks[{index}]", self.model, data_config.tokenizer)

    def _check_tasks(self) -> None:
        """Raise ValueError where a model reads tasks, and the data give none, or one that it has not."""
        if (tasks := self.model.task_count) is None:
            return
        texts = [("data.source", data.source) for data in self.datasets]
        texts += [(f"validation[{index}].source", own.source) for index, own in enumerate(self.validation)]
        for where, text in texts:
            for number, task in enumerate(text.tasks):
                if task is None or task >= tasks:
                    raise ValueError(
                        f"{where}, source {number}, has task={task}: the model reads tasks 0 to {tasks - 1}; give it "
                        "one, Mixture(sources=(Weighted(source=..., task=0), ...))"
                    )

    def _check_judges(self) -> None:
        """Raise ValueError for a hook that goes by a number which no hook measures. A best checkpoint is not a must."""
        averages = [hook.name for hook in self.hooks if hook.order == AVERAGING]
        shapes = {(phase.data or self.data, phase.sequence_length) for phase in self.phases}
        names = validation_names([phase.data or self.data for phase in self.phases], self.validation)
        measured = [name for hook in self.hooks for name in hook.measures(averages, names)]
        numbers = measured or [label(VALIDATION_LOSS, name) for name in names]
        if twice := [name for name in numbers if numbers.count(name) > 1]:
            raise ValueError(
                f"validation: two numbers are called {twice[0]!r}; give each set and each source of a mixture a name "
                "of its own, and none that of an average"
            )
        for index, hook in enumerate(self.hooks):
            by = hook.judges_by
            if by in measured and not hook.saving and len(shapes) > 1:
                raise ValueError(
                    f"hooks[{index}] ({hook.name}) compares {by!r} over the whole run, and phases have other data or "
                    "another sequence_length: their losses are of other text; leave the hook out, or give all phases "
                    "the same"
                )
            if by in measured or by is None or (hook.saving and by == VALIDATION_LOSS and not measured):
                continue
            known = f"those that are measured are {', '.join(measured)}" if measured else "add the hook Evaluate"
            raise ValueError(f"hooks[{index}] ({hook.name}) goes by {by!r}, which no hook measures: {known}")

    def _check_learning_rates(self) -> None:
        """Build every phase's learning rate and momentum: an error is raised now and not when its phase begins."""
        for span in spans(self.phases):
            own = f"phases[{span.number}].learning_rate"
            where = f"optimizer.{self.optimizer.rate_key}" if span.phase.learning_rate is None else own
            try:
                learning_rate(span, self.optimizer.learning_rate, self.phases)
                if momentum(span, self.optimizer.learning_rate, self.phases) is not None:
                    self.optimizer.with_momentum(jnp.zeros(()))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error

    def check_memory(self, room: Room) -> None:
        """Raise ValueError if the run cannot fit in the memory of `room`."""
        check_run(
            model=self.model,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            phases=self.phases,
            hooks=self.hooks,
            microbatches=self.gradients.microbatches,
            room=room,
        )

    def check_devices(self, devices: int) -> None:
        """Raise ValueError if this many devices cannot run the configuration, naming the key and the remedy."""
        for index, phase in enumerate(self.phases):
            sizes = dict(zip(AXES, (phase.mesh or self.mesh).sizes(devices), strict=True))
            mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
            self._check_batch(f"phases[{index}].batch_size", phase.batch_size, sizes)
            self.gradients.check(sizes["stage"], self.model)
            for key, block in self.model.named_blocks.items():
                if block.mixer.heads % sizes["tensor"]:
                    raise ValueError(
                        f"model.{key}.mixer.heads={block.mixer.heads} is not divisible by "
                        f"mesh.tensor={sizes['tensor']}: choose a tensor axis that divides the heads"
                    )
                try:
                    block.mlp.check_mesh(mesh)
                except ValueError as error:
                    raise ValueError(f"model.{key}.mlp: {error}") from error
            _, shapes, axes = abstract_model(self.model)
            try:
                shardings(axes, shapes, mesh)
            except IndivisibleError as error:
                known = DIMENSIONS.get(error.name)
                raise ValueError(error.text(f"{known}={error.size}") if known else str(error)) from error

    def remarks(self, devices: int) -> list[str]:
        """Return what a user should know of these devices before a run.

        A line for each dimension that devices replicate because the mesh axes do not divide it, and what feed-forward
        layers say of themselves.
        """
        _, shapes, axes = abstract_model(self.model)
        lines: dict[str, None] = {}
        for phase in self.phases:
            sizes = dict(zip(AXES, (phase.mesh or self.mesh).sizes(devices), strict=True))
            mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
            for name, size, over, without in undivided(axes, shapes, mesh):
                split, whole = (" x ".join(f"mesh.{axis}={sizes[axis]}" for axis in some) for some in (over, without))
                near = nearest(size, math.prod(sizes[axis] for axis in over))
                text = f"{DIMENSIONS[name]}={size} is not divisible by {split}, so devices along {whole} hold the same"
                lines[f"{text} of it: parameters, gradients and moments; nearest that is split {near}"] = None
            rows = phase.batch_size // self.gradients.microbatches
            shape = rows, phase.sequence_length, self.model.d_model
            value_bytes = jnp.dtype(self.model.compute_dtype).itemsize
            for key, block in self.model.named_blocks.items():
                if remark := block.mlp.remark(shape, mesh, value_bytes):
                    lines[f"model.{key}.mlp: {remark}"] = None
        return list(lines)

    def _check_batch(self, key: str, batch_size: int, sizes: dict[str, int]) -> None:
        shards = 1
        for axis in RULES["batch"]:
            shards *= sizes.get(axis, 1)
        parts = shards * self.gradients.microbatches
        if batch_size % parts:
            shown = [f"mesh {axis}={sizes[axis]}" for axis in RULES["batch"] if sizes.get(axis, 1) > 1]
            raise ValueError(
                f"{key}={batch_size} is not divisible by {parts} "
                f"({', '.join([*shown, f'microbatches={self.gradients.microbatches}'])}): "
                f"use {-(-batch_size // parts) * parts}"
                + self._other_microbatches(batch_size // shards if batch_size % shards == 0 else 0, sizes["stage"])
            )

    def _other_microbatches(self, rows: int, stages: int) -> str:
        """Return the end of an error message: the nearest numbers of microbatches that divide a device's `rows`."""

        def first(numbers: Iterable[int]) -> list[int]:
            return list(islice((n for n in numbers if rows % n == 0 and self._can_run(n, stages)), 1))

        now = self.gradients.microbatches
        most = min(rows, 4 * max(now, stages))  # schedule tables of many more take long to write
        fits = first(range(min(now - 1, rows), 0, -1)) + first(range(now + 1, most + 1))
        return f", or gradients.microbatches={' or '.join(map(str, fits))}" if fits else ""

    def _can_run(self, microbatches: int, stages: int) -> bool:
        try:
            replace(self.gradients, microbatches=microbatches).check(stages, self.model)
        except ValueError:
            return False
        return True

    @property
    def datasets(self) -> tuple[DataConfig, ...]:
        """The data of all phases."""
        return tuple(dict.fromkeys(phase.data or self.data for phase in self.phases))

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            model=self.model,
            objective=self.objective,
            optimizer=self.optimizer,
            gradients=self.gradients,
            clip_norm=self.clip_norm,
            phases=self.phases,
        )

    def trainer(
        self,
        folder: str | Path,
        *,
        devices: list[jax.Device] | None = None,
        profile_steps: int = 0,
        lock: RunLock | None = None,
    ) -> Trainer:
        """Return the Trainer of this configuration in a run folder. `devices` are all devices by default.

        `lock` is the lock of the folder, if the caller already holds it.
        """
        if jax.process_index() == 0:  # the one that opens them
            for writer in self.writers:
                writer.check()
        used = jax.devices() if devices is None else devices
        self.check_memory(room_of(used))
        try:
            self.check_devices(len(used))
        except MisfitError as error:
            if jax.default_backend() != "cpu":
                raise
            flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={error.needed}"
            raise ValueError(f"{error}; or simulate devices on this CPU, {flag} before JAX starts") from error
        return Trainer(
            recipe=self.recipe,
            data=self.data,
            initial=self.initial,
            mesh=self.mesh,
            hooks=self.hooks,
            seed=self.seed,
            max_skipped_steps=self.max_skipped_steps,
            writers=self.writers,
            validation=self.validation,
            folder=RunFolder(Path(folder)),
            lock=lock or RunLock(Path(folder)),
            devices=devices,
            profile_steps=profile_steps,
        )

    def train(
        self, folder: str | Path, *, devices: list[jax.Device] | None = None, allow_config_change: bool = False
    ) -> Result:
        """Train, or resume, in a run folder, and write its config.gin.

        Raises what `Trainer.train` raises; and ValueError where the folder has a run with another configuration, unless
        `allow_config_change` and its checkpoints fit this one.
        """
        trainer = self.trainer(folder, devices=devices)
        with trainer.lock:
            files = files_of(self, trainer.folder)
            changes = check_same(trainer.folder, files, allow_change=allow_config_change) if files else []
            start = checked_start(trainer, changes)
            trainer.check_start(start)
            if files:
                write_record(trainer.folder, files)
                config: TrainConfig = files.from_copies(trainer.folder)
                trainer = config.trainer(folder, devices=devices, lock=trainer.lock)
            return trainer.train_from(start)
