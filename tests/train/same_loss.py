"""Twenty steps of a tiny decoder on a mesh, for the tests of the same loss. Run as a program it is one of several
processes, told who it is by the variables of `jaxtrain.train.distributed`, and prints its losses as JSON."""

import dataclasses
import json
from typing import NamedTuple

import jax
import numpy as np
from tiny import DECODER, random_model, training_batch

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.objectives.base import Objective
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import Optimizer, transformation, used_rate
from jaxtrain.optim.schedules import Cosine
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.train.distributed import start
from jaxtrain.train.feed import Layout
from jaxtrain.train.gradients import Accumulate, Strategy
from jaxtrain.train.state import state_of, state_shardings
from jaxtrain.train.step import make_train_step

STEPS, ROWS, LENGTH, DROPOUT = 20, 16, 16, 0.1
OPTIMIZER = AdamW(learning_rate=Cosine(peak=3e-3, warmup_steps=4))
WHOLE = Accumulate()
OBJECTIVE = NextToken(z_loss=1e-3)
TWO_PROCESSES = MeshConfig(data=2, fsdp=2, tensor=2)  # `data` goes across the processes


class Run(NamedTuple):
    """The loss of every step, and the buffers behind the last one."""

    losses: list[float]
    buffers: ParamTree


def losses(mesh_config: MeshConfig, **options) -> list[float]:
    """Return the loss of every step of `run`."""
    return run(mesh_config, **options).losses


def run(
    mesh_config: MeshConfig,
    *,
    dropout: float,
    gradients: Strategy = WHOLE,
    devices=None,
    config: DecoderConfig = DECODER,
    objective: Objective = OBJECTIVE,
    optimizer: Optimizer = OPTIMIZER,
    steps: int = STEPS,
) -> Run:
    """Train. The same initial values are laid out over whatever mesh is asked for.

    What devices hold copies of must be the same on all of them at the end.
    """
    config, mesh = dataclasses.replace(config, dropout=dropout), mesh_config.build(devices)
    graph, _, axes = abstract_model(config)
    rate = optimizer.learning_rate.build(STEPS)
    tx = transformation(optimizer, rate, axes.params, clip_norm=1.0)
    state = state_of(random_model(config), tx)
    state = jax.tree.map(_spread, state, state_shardings(state, axes, mesh))
    layout = Layout(ROWS, LENGTH, mesh)
    step = make_train_step(graph, objective, gradients, tx, used_rate(optimizer, rate))
    found = []
    with jax.set_mesh(mesh):
        step = jax.jit(step, donate_argnums=0)
        for seed in range(steps):
            batch = batch_of(seed)
            own_rows = jax.tree.map(lambda leaf: leaf[list(layout.rows)], batch)
            state, metrics = step(state, layout.globalise(own_rows), jax.random.key(7))
            found.append(metrics["loss"])
    jax.tree.map(_check_copies, state)
    return Run([float(loss) for loss in found], jax.device_get(state.model.buffers))


def batch_of(step: int) -> Batch:
    return training_batch(ROWS, LENGTH, vocab_size=64, seed=step)


def _check_copies(x: jax.Array) -> None:
    """Raise AssertionError where devices hold different copies of a part of an array."""
    copies: dict[str, np.ndarray] = {}
    for shard in x.addressable_shards:
        own = np.asarray(shard.data)
        np.testing.assert_array_equal(own, copies.setdefault(str(shard.index), own), str(shard.device))


def _spread(x, sharding) -> jax.Array:
    value = np.asarray(x)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _one_of_several() -> None:
    start()
    assert jax.process_count() == 2 and jax.device_count() == 8 and jax.local_device_count() == 4
    found = losses(TWO_PROCESSES, dropout=DROPOUT)
    print("\n" + json.dumps(found))  # the collectives' library prints before it


if __name__ == "__main__":
    _one_of_several()
