"""The train step compiled for devices that need not be there: what it holds in memory and what it moves."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxtrain.mesh import activation_spec
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.optim.base import Optimizer, transformation
from jaxtrain.planning.topology import compile_absent
from jaxtrain.shapes import Batch
from jaxtrain.train.gradients import Objective, Strategy
from jaxtrain.train.phases import Phase, Span, learning_rate
from jaxtrain.train.state import abstract_state
from jaxtrain.train.step import make_train_step


def trace_step(
    *,
    model: DecoderConfig,
    objective: Objective,
    optimizer: Optimizer,
    gradients: Strategy,
    clip_norm: float | None,
    phase: Phase,
    mesh: Mesh,
    total_steps: int | None = None,
) -> jax.stages.Traced:
    """Return the donated train step of a phase as it is traced: what no configuration shows is refused here.

    `total_steps` are those of the run, which the optimizer's schedule spans; by default the run is this phase alone.
    """
    graph, _, names = abstract_model(model)
    steps = total_steps or phase.steps
    rate = learning_rate(Span(0, phase, 0, phase.steps), optimizer.learning_rate, total_steps=steps)
    tx = transformation(optimizer, rate, names, clip_norm=clip_norm)
    step = make_train_step(graph, objective, gradients, tx, rate, dropout=model.dropout > 0)
    state = abstract_state(model, tx, names, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).trace(state, abstract_batch(phase, mesh), key)


def compile_step(
    *,
    model: DecoderConfig,
    objective: Objective,
    optimizer: Optimizer,
    gradients: Strategy,
    clip_norm: float | None,
    phase: Phase,
    mesh: Mesh,
    total_steps: int | None = None,
) -> jax.stages.Compiled:
    """Return the train step that `trace_step` traces, compiled for the devices of `mesh`; nothing is computed."""
    traced = trace_step(
        model=model,
        objective=objective,
        optimizer=optimizer,
        gradients=gradients,
        clip_norm=clip_norm,
        phase=phase,
        mesh=mesh,
        total_steps=total_steps,
    )
    with jax.set_mesh(mesh):
        return compile_absent(traced.lower())


def abstract_batch(phase: Phase, mesh: Mesh) -> Batch:
    """Return the shapes and the layout of a global batch."""
    shape = (phase.batch_size, phase.sequence_length)
    sharding = NamedSharding(mesh, activation_spec(("batch", "length"), shape, mesh))
    integers = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    return Batch(integers, integers, weights, integers, integers)
