"""Variables that carry their facts, and the conversion between a module and its arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxtrain.axes import Axes, Kind
from jaxtrain.shapes import ModelState, ParamTree


class Frozen(nnx.Variable):
    """A variable that no gradient reaches. It is stacked, moved and gathered as a parameter is, but never trained."""


class Adapter(nnx.Param):
    """A parameter that changes what frozen weights do. It is zero, or the identity, at the start."""


class Buffer(nnx.Variable):
    """A variable that its layer replaces, once an optimizer step, in `update_buffers`."""


def split[Module: nnx.Module](module: Module) -> tuple[nnx.GraphDef[Module], ModelState]:
    """Return the structure of a module and its arrays."""
    graph, *collections = nnx.split(module, nnx.Param, Frozen, Buffer)
    return graph, ModelState(*map(nnx.to_pure_dict, collections))


def merge[Module: nnx.Module](graph: nnx.GraphDef[Module], state: ModelState) -> Module:
    """Return the module of a structure and arrays."""
    return nnx.merge(graph, *state)


def normal(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    *,
    fan_in: int,
    kind: Kind = Kind.MATRIX,
    variable: type[nnx.Param] = nnx.Param,
) -> nnx.Param:
    """Return a float32 parameter drawn from a normal truncated at two deviations, with variance 1/fan_in."""
    # 0.8796 is the standard deviation of a unit normal truncated at two.
    value = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * (fan_in**-0.5 / 0.87962566)
    return variable(value, axes=Axes(names, kind, cast=True))


def constant(value: float, shape: tuple[int, ...], names: tuple[str | None, ...]) -> nnx.Param:
    """Return a float32 vector whose elements all have one value."""
    return vector(jnp.full(shape, value, jnp.float32), names)


def vector(value: Float[Array, "..."], names: tuple[str | None, ...]) -> nnx.Param:
    """Return a scale, a bias or a rate, which keeps its dtype where it is used."""
    return nnx.Param(value, axes=Axes(names, Kind.VECTOR, cast=False))


def attach(module: nnx.Module, built: Mapping[str, Any]) -> tuple[str, ...]:
    """Give a module modules and variables under their names. Return the names."""
    for name, value in built.items():
        if name in vars(module):
            raise ValueError(f"{name}: {type(module).__name__} has a part of this name already; take another")
        setattr(module, name, value)
    return tuple(built)


def attached(module: nnx.Module, names: tuple[str, ...]) -> dict[str, Any]:
    """Return what was attached under these names."""
    return {name: getattr(module, name) for name in names}


def axes_of(module: nnx.Module) -> ModelState:
    """Return the facts about a module's variables, in trees nested like those of the arrays."""

    def facts(collection: type[nnx.Variable]) -> ParamTree:
        state = nnx.state(module, collection)
        return nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(v.axes), state, is_leaf=is_variable))

    return ModelState(*map(facts, (nnx.Param, Frozen, Buffer)))


def is_variable(x) -> bool:
    return isinstance(x, nnx.Variable)
