"""The way of dispatch changes between steps, and nothing moves: Tutel, Hwang et al. (2022), arXiv:2206.03382."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny import training_batch
from tolerances import SAME_GRADIENT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.moe.dispatch import Capacity, Dispatch, Dropless, EveryExpert, Exchange
from jaxtrain.nn.param import axes_of, merge, split
from jaxtrain.sharding import constrain, shardings

WIDTH, ROWS, LENGTH, RATE = 16, 8, 16, 1.0
MIXTURE = MixtureConfig(experts=8, top_k=2, expert=MLPConfig(hidden=24))
CONTEXT = context_of(training_batch(ROWS, LENGTH, vocab_size=64), None)
X = np.random.default_rng(0).standard_normal((ROWS, LENGTH, WIDTH)).astype(np.float32)
WAYS = (Exchange(factor=1.0), Dropless(pieces=2), Capacity(factor=4.0), Exchange(factor=4.0, pieces=4, near=2))


def _built(dispatch: Dispatch):
    return dataclasses.replace(MIXTURE, dispatch=dispatch).build(WIDTH, rngs=nnx.Rngs(0))


def _step(params, x, *, dispatch: Dispatch):
    """Return parameters after a step of gradient descent, and the sum of squares."""
    graph, model = split(_built(dispatch))

    def loss(params):
        y = merge(graph, model._replace(params=params))(constrain(x, "batch", "length", None), CONTEXT).y
        return jnp.mean((constrain(y, "batch", "residual_length", None) - 1) ** 2)

    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda w, dw: w - RATE * dw, params, gradient), value


def test_a_switch_moves_nothing_compiles_each_way_once_and_changes_no_result():
    mesh = MeshConfig(expert=4, tensor=2, fsdp=1).build()
    start = split(_built(Dropless()))[1].params
    layouts = [shardings(axes_of(_built(way)).params, start, mesh) for way in WAYS]
    assert layouts == layouts[:1] * len(WAYS)
    step = jax.jit(_step, static_argnames="dispatch", donate_argnums=0, out_shardings=(layouts[0], None))  # as programs
    losses, compiled = [], []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    with jax.set_mesh(mesh):
        found = jax.jit(lambda params: params, out_shardings=layouts[0])(start)
        for number, way in enumerate((*WAYS, *WAYS)):
            compiled.clear()
            found, loss = step(found, X, dispatch=way)
            losses.append(loss)
            assert jax.tree.map(lambda w: w.sharding, found) == layouts[0], way
            assert any("backend_compile" in event for event in compiled) == (number < len(WAYS)), way
    desired, alone = start, []
    one_step = jax.jit(_step, static_argnames="dispatch")
    for _ in losses:
        desired, loss = one_step(desired, X, dispatch=EveryExpert())
        alone.append(loss)
    assert_close(jax.device_get((found, losses)), jax.device_get((desired, alone)), SAME_GRADIENT)
    assert alone[-1] < alone[0] - 0.1
