"""The tiny decoder through the executor and without it, for the tests and for scripts/check_pipeline.py."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from tiny import random_model, training_batch

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.layer import Keys
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.pipeline.executor import value_and_grad
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.residuals import RepeatResiduals, Residuals
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.tick_program import TickProgram
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.train.gradients import Accumulate, Loss, Value, deal_out
from jaxtrain.train.gradients.pipelined import Data, Pipelined, parts, put_together, taken_apart
from jaxtrain.train.step import step_keys

LENGTH = 16
EVERYTHING = RepeatResiduals()


class Found(NamedTuple):
    value: Value
    gradient: ParamTree


class Task(NamedTuple):
    loss: Loss
    params: ParamTree
    batch: Batch
    keys: Keys


def task(config: DecoderConfig, rows: int) -> Task:
    model = jax.tree.map(jnp.asarray, random_model(config))
    keys = step_keys(jax.random.key(3), rows)
    batch = training_batch(rows, LENGTH, vocab_size=config.vocab_size)
    objective = NextToken(z_loss=1e-3)
    return Task(Loss.of_batch(abstract_model(config).graph, objective, model, batch), model.params, batch, keys)


@functools.cache
def unpipelined(config: DecoderConfig, rows: int) -> Found:
    loss, *arguments = task(config, rows)
    return Found(*jax.jit(functools.partial(Accumulate(), loss))(*arguments))


def pipelined(
    config: DecoderConfig,
    rows: int,
    schedule: Schedule,
    microbatches: int,
    mesh: MeshConfig,
    *,
    residuals: Residuals = EVERYTHING,
    change: Callable[[TickProgram], TickProgram] = lambda program: program,
) -> Found:
    """Run on as many devices as the mesh needs, slots that hold nothing poisoned. `change` may spoil the program."""
    loss, *arguments = task(config, rows)
    plan = Pipelined(schedule=schedule, microbatches=microbatches).plan(mesh.stage, config, LENGTH)
    program = change(lower(*plan))

    def run(params, batch, keys):
        data = deal_out(Data(batch, keys, loss.real_tokens), microbatches)
        model = parts(loss, params), program, *taken_apart(loss, params)
        return Found(*put_together(loss, value_and_grad(*model, data, residuals=residuals, poison=True)))

    devices = jax.devices()[: mesh.stage * mesh.data * mesh.fsdp * mesh.tensor]
    with jax.set_mesh(mesh.build(devices)):
        return jax.jit(run)(*arguments)
