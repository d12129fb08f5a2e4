"""The program of a phase: optimizer, layout of the state, and the jitted step, assembled in this one place.

The loop runs it. Ahead-of-time compilation, and the check before a run is replaced by another, trace the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.objectives.base import Objective
from jaxtrain.optim.base import Optimizer, transformation, used_rate
from jaxtrain.planning.topology import compile_ahead_of_time
from jaxtrain.shapes import Batch
from jaxtrain.sharding import activation_spec
from jaxtrain.train.gradients import Strategy
from jaxtrain.train.phases import Phase, Span, learning_rate, momentum, spans, total_steps
from jaxtrain.train.state import TrainState, abstract_state
from jaxtrain.train.step import TrainStep, make_train_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What determines the results of a run, besides its data, its seed and its mesh."""

    model: DecoderConfig
    objective: Objective
    optimizer: Optimizer
    gradients: Strategy
    clip_norm: float | None
    phases: tuple[Phase, ...]

    @property
    def spans(self) -> list[Span]:
        """Every phase with the steps it covers."""
        return list(spans(self.phases))

    @property
    def total_steps(self) -> int:
        return total_steps(self.phases)

    def objective_of(self, phase: Phase) -> Objective:
        """Return what a phase minimises: its own objective or the run's."""
        return phase.objective or self.objective

    def program(self, span: Span, mesh: Mesh) -> "Program":
        """Return the program of a phase on a mesh; nothing is computed or compiled."""
        graph, _, axes = abstract_model(self.model)
        schedule = self.optimizer.learning_rate
        rate, decay = (of(span, schedule, self.phases) for of in (learning_rate, momentum))
        tx = transformation(self.optimizer, rate, axes.params, clip_norm=self.clip_norm, momentum=decay)
        target = abstract_state(self.model, tx, axes, mesh)
        objective = self.objective_of(span.phase)
        plain = make_train_step(graph, objective, self.gradients, tx, used_rate(self.optimizer, rate))
        # Without out_shardings the compiler might return the state in another layout than a checkpoint restores it in.
        layout = jax.tree.map(lambda x: x.sharding, target), NamedSharding(mesh, P())
        step = jax.jit(plain, donate_argnums=0, out_shardings=layout)
        given = self.model.teacher.given if self.model.teacher else {}
        return Program(span.phase, mesh, tx, target, plain, step, given)


class Program(NamedTuple):
    """`target` has the shapes and the layout of the state; `step` is `plain` jitted, and its state is donated.

    `given` are the hints of a token that batches come with.
    """

    phase: Phase
    mesh: Mesh
    tx: optax.GradientTransformation
    target: TrainState
    plain: TrainStep
    step: jax.stages.Wrapped  # of a TrainStep
    given: Mapping[str, jax.ShapeDtypeStruct]

    def trace(self) -> jax.stages.Traced:
        """Return the traced step. Tracing raises errors that no check of the configuration finds."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        with jax.set_mesh(self.mesh):
            return self.step.trace(self.target, abstract_batch(self.phase, self.mesh, self.given), key)

    def compile(self, compiler_options: dict | None = None) -> jax.stages.Compiled:
        """Return the step compiled for the devices of the mesh, which may be those of a topology."""
        traced = self.trace()
        with jax.set_mesh(self.mesh):
            return compile_ahead_of_time(traced.lower(), compiler_options=compiler_options)


def abstract_batch(phase: Phase, mesh: Mesh, given: Mapping[str, jax.ShapeDtypeStruct]) -> Batch:
    """Return the shapes and the layout of a global batch."""
    shape = (phase.batch_size, phase.sequence_length)
    sharding = NamedSharding(mesh, activation_spec(("batch", "length"), shape, mesh))
    integers = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    hints = {
        name: jax.ShapeDtypeStruct((*shape, *hint.shape), hint.dtype, sharding=sharding) for name, hint in given.items()
    }
    return Batch(integers, integers, weights, integers, integers, integers, hints)  # type: ignore[arg-type]  # shapes of arrays
