"""A model that takes over the weights of another one of the same architecture, whose linears may be of other kinds."""

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.surgery.linears import converted
from jaxtrain.train.state import initial_model


def taken_over(
    model: ModelState, source: DecoderConfig, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]
) -> ModelState:
    """Return the arrays `model`, of `source`, as those of `config`, laid out over the mesh."""

    def take_over(model: ModelState, key: Key[Array, ""]) -> ModelState:
        return converted(model, source, config, initial_model(config, key))

    with jax.set_mesh(mesh):
        return jax.jit(take_over, out_shardings=layout(config, mesh))(model, key)


def layout(config: DecoderConfig, mesh: Mesh) -> ModelState:
    """Return the sharding of every array of a model."""
    _, shapes, axes = abstract_model(config)
    return shardings(axes, shapes, mesh)
