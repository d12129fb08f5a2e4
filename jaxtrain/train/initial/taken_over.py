"""A model that takes over the weights of another one of the same architecture, whose linears may be of other kinds."""

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.surgery.linears import converted, plain
from jaxtrain.train.state import initial_model


def taken_over(
    model: ModelState, source: DecoderConfig, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]
) -> ModelState:
    """Return the arrays `model`, of `source`, as those of `config`, laid out over the mesh."""

    def take_over(model: ModelState, key: Key[Array, ""]) -> ModelState:
        return converted(model, source, config, initial_model(config, key))

    with jax.set_mesh(mesh):
        return jax.jit(take_over, out_shardings=layout(config, mesh))(model, key)


def check_same_architecture(source: DecoderConfig, config: DecoderConfig, *, path: str, what: str) -> None:
    """Raise ValueError where the two differ in more than linears. `what` is at `path`, such as "a run"."""
    ours, theirs = (flatten_dict(abstract_model(plain(of)).shapes.params) for of in (config, source))
    for name in {**ours, **theirs}:
        one, other = (of[name].shape if name in of else None for of in (ours, theirs))
        if one != other:
            raise ValueError(
                f"{path=}: it is {what} of another architecture, whose {'.'.join(map(str, name))} is "
                f"{other} where the model has {one}; give the model that {what.removeprefix('a ')}'s architecture"
            )


def layout(config: DecoderConfig, mesh: Mesh) -> ModelState:
    """Return the sharding of every array of a model."""
    _, shapes, axes = abstract_model(config)
    return shardings(axes, shapes, mesh)
