"""The training state, created in place on the mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from jaxtrain.models.decoder import DecoderConfig
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

    @property
    def updates(self) -> Int[Array, ""]:
        """Updates made so far: what learning-rate schedules count."""
        return self.step - self.skipped


def initial_model(config: DecoderConfig, key: Key[Array, ""]) -> ModelState:
    return split(config.build(key))[1]


def state_of(model: ModelState, tx: optax.GradientTransformation) -> TrainState:
    """Return the state of a model that no step has been made with."""
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # one buffer each, or they could not all be donated
    return TrainState(model, tx.init(model.params), *counters)


def state_shardings(state: TrainState, axes: ModelState, mesh: Mesh) -> TrainState:
    """Return where every leaf of a state lies: moments as the parameter they belong to, all else on every device.

    A moment is found by its path, which ends in its parameter's, and its shape; factored moments are small. One key
    further are the parts of a quantized moment: codes, and scales, which have as many axes in fewer, equal pieces and
    are split alike where the mesh divides them.
    """
    model = shardings(axes, state.model, mesh)
    whole = NamedSharding(mesh, P())
    leaves = zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(model.params), strict=True)
    known = {path: (leaf.shape, found) for (path, leaf), found in leaves}

    def sharding(path, leaf):
        for start in range(len(path)):
            shape, found = known.get(path[start:], (None, whole))
            part_of, part_found = known.get(path[start:-1], (None, whole))
            if shape == leaf.shape:
                return found
            if part_of is not None and splits_alike(leaf.shape, part_of, part_found):
                return part_found
        return whole

    others = jax.tree_util.tree_map_with_path(sharding, state._replace(model=()))
    return others._replace(model=model)


def _creator(config: DecoderConfig, tx: optax.GradientTransformation):
    return lambda key: state_of(initial_model(config, key), tx)


def abstract_state(config: DecoderConfig, tx: optax.GradientTransformation, axes: ModelState, mesh: Mesh) -> TrainState:
    """Return the shapes and the layout of a state, computing nothing."""
    state = jax.eval_shape(_creator(config, tx), jax.random.key(0))
    layout = state_shardings(state, axes, mesh)
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), state, layout)


def create_state(
    config: DecoderConfig, tx: optax.GradientTransformation, axes: ModelState, mesh: Mesh, key: Key[Array, ""]
) -> TrainState:
    """Initialise a state, each shard on its own device; the values do not depend on the mesh."""
    layout = jax.tree.map(lambda x: x.sharding, abstract_state(config, tx, axes, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(_creator(config, tx), out_shardings=layout)(key)
