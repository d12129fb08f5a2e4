"""The training state, created in place on the mesh."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.param import split
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.sharding import shardings, splits_alike


class TrainState(NamedTuple):
    """What a step replaces. `skipped` counts steps with a non-finite loss or gradient, which changed nothing else."""

    model: ModelState
    opt_state: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]

    @property
    def params(self) -> ParamTree:
        return self.model.params


def initial_model(config: DecoderConfig, key: Key[Array, ""]) -> ModelState:
    return split(config.build(key))[1]


def state_of(model: ModelState, tx: optax.GradientTransformation) -> TrainState:
    """Return the training state of a model before its first step."""
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # each has its own buffer, so that all can be donated
    return TrainState(model, tx.init(model.params), *counters)


def state_shardings(state: TrainState, axes: ModelState, mesh: Mesh) -> TrainState:
    """Return the sharding of every leaf of a state: that of its parameter for a moment, replicated for all else.

    A moment is a leaf whose path ends in the path of a parameter and that has the parameter's shape. Factored moments
    have another shape and are small. The parts of a quantized moment have a path that is one key longer. They are codes
    and scales. Scales have as many axes, of fewer elements, and are split like the parameter where the mesh divides
    them.
    """
    model = shardings(axes, state.model, mesh)
    whole = NamedSharding(mesh, P())
    leaves = zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(model.params), strict=True)
    of_params = {path: (leaf.shape, own_sharding) for (path, leaf), own_sharding in leaves}

    def sharding(path, leaf):
        for start in range(len(path)):
            shape, of_param = of_params.get(path[start:], (None, whole))
            shape_quantized, of_quantized = of_params.get(path[start:-1], (None, whole))
            if shape == leaf.shape:
                return of_param
            if shape_quantized is not None and splits_alike(leaf.shape, shape_quantized, of_quantized):
                return of_quantized
        return whole

    others = jax.tree_util.tree_map_with_path(sharding, state._replace(model=ModelState({})))
    return others._replace(model=model)


def abstract_state(config: DecoderConfig, tx: optax.GradientTransformation, axes: ModelState, mesh: Mesh) -> TrainState:
    """Return the shapes and the layout of a state. Nothing is computed."""
    state = jax.eval_shape(lambda key: state_of(initial_model(config, key), tx), jax.random.key(0))
    layout = state_shardings(state, axes, mesh)
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), state, layout)


def create_state(
    config: DecoderConfig, tx: optax.GradientTransformation, axes: ModelState, mesh: Mesh, key: Key[Array, ""]
) -> TrainState:
    """Return an initial state, with each shard made on its own device. The values do not depend on the mesh."""
    return begin(create_model(config, mesh, key), tx, abstract_state(config, tx, axes, mesh))


def create_model(config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
    """Return a model of random weights, with each shard made on its own device."""
    _, shapes, axes = abstract_model(config)
    with jax.set_mesh(mesh):
        create = functools.partial(initial_model, config)
        return jax.jit(create, out_shardings=shardings(axes, shapes, mesh))(key)


def begin(model: ModelState, tx: optax.GradientTransformation, target: TrainState) -> TrainState:
    """Return the training state of a model before its first step, laid out as `target` is. The model is donated."""
    layout = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(functools.partial(state_of, tx=tx), out_shardings=layout, donate_argnums=0)(model)
