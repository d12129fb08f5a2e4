"""The training state, created in place on the mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from jaxtrain.models.decoder import Decoder, DecoderConfig
from jaxtrain.shapes import ParamTree
from jaxtrain.sharding import shardings, splits_alike


class TrainState(NamedTuple):
    """What a step replaces. `skipped` counts steps with a non-finite loss or gradient, which changed nothing else."""

    params: ParamTree
    opt_state: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]

    @property
    def updates(self) -> Int[Array, ""]:
        """Updates made so far: what learning-rate schedules count."""
        return self.step - self.skipped


def initial_params(config: DecoderConfig, key: Key[Array, ""]) -> ParamTree:
    model: Decoder = config.build(key)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def state_from_params(params: ParamTree, tx: optax.GradientTransformation) -> TrainState:
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))  # one buffer each, or they could not all be donated
    return TrainState(params, tx.init(params), *counters)


def state_shardings(state: TrainState, axes: dict, mesh: Mesh) -> TrainState:
    """Return where every leaf of a state lies: moments as the parameter they belong to, all else on every device.

    A moment is found by its path, which ends in its parameter's, and its shape; factored moments are small. One key
    further are the parts of a quantized moment: codes, and scales, which have as many axes in fewer, equal pieces and
    are split alike where the mesh divides them.
    """
    params = shardings(axes, state.params, mesh)
    whole = NamedSharding(mesh, P())
    shapes = jax.tree_util.tree_leaves_with_path(state.params)
    known = {
        path: (leaf.shape, sharding) for (path, leaf), sharding in zip(shapes, jax.tree.leaves(params), strict=True)
    }

    def sharding(path, leaf):
        for start in range(len(path)):
            shape, found = known.get(path[start:], (None, whole))
            part_of, part_found = known.get(path[start:-1], (None, whole))
            if shape == leaf.shape:
                return found
            if part_of is not None and splits_alike(leaf.shape, part_of, part_found):
                return part_found
        return whole

    return jax.tree_util.tree_map_with_path(sharding, state)


def _creator(config: DecoderConfig, tx: optax.GradientTransformation):
    return lambda key: state_from_params(initial_params(config, key), tx)


def abstract_state(config: DecoderConfig, tx: optax.GradientTransformation, axes: dict, mesh: Mesh) -> TrainState:
    """Return the shapes and the layout of a state, computing nothing."""
    state = jax.eval_shape(_creator(config, tx), jax.random.key(0))
    layout = state_shardings(state, axes, mesh)
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), state, layout)


def create_state(
    config: DecoderConfig, tx: optax.GradientTransformation, axes: dict, mesh: Mesh, key: Key[Array, ""]
) -> TrainState:
    """Initialise a state, each shard on its own device; the values do not depend on the mesh."""
    layout = jax.tree.map(lambda x: x.sharding, abstract_state(config, tx, axes, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(_creator(config, tx), out_shardings=layout)(key)
