"""Variables that carry the facts about themselves, and the way between a module and its arrays."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxtrain.axes import Axes, Kind
from jaxtrain.shapes import ModelState, ParamTree


class Frozen(nnx.Variable):
    """What no gradient reaches: it is used, and stacked, moved and gathered as a parameter is, and never trained."""


class Buffer(nnx.Variable):
    """What the model replaces itself, once an optimizer step, in `update_buffers` of the layer that owns it."""


def split(module: nnx.Module) -> tuple[nnx.GraphDef, ModelState]:
    """Return the structure of a module and its arrays."""
    graph, *collections = nnx.split(module, nnx.Param, Frozen, Buffer)
    return graph, ModelState(*map(nnx.to_pure_dict, collections))


def merge(graph: nnx.GraphDef, state: ModelState) -> nnx.Module:
    return nnx.merge(graph, *state)


def normal(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    *,
    fan_in: int,
    kind: Kind = Kind.MATRIX,
) -> nnx.Param:
    """Return a float32 parameter drawn from a normal of variance 1/fan_in, truncated at two deviations."""
    # 0.8796 is the deviation of a unit normal truncated at two.
    value = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * (fan_in**-0.5 / 0.87962566)
    return nnx.Param(value, axes=Axes(names, kind, cast=True))


def constant(value: float, shape: tuple[int, ...], names: tuple[str | None, ...]) -> nnx.Param:
    """Return a float32 vector of one value."""
    return vector(jnp.full(shape, value, jnp.float32), names)


def vector(value: Float[Array, "..."], names: tuple[str | None, ...]) -> nnx.Param:
    """Return a scale, a bias or a rate, which keeps its dtype where it is used."""
    return nnx.Param(value, axes=Axes(names, Kind.VECTOR, cast=False))


def axes_of(module: nnx.Module) -> ModelState:
    """Return the facts about a module's variables, in trees like those of the arrays."""

    def facts(collection: type[nnx.Variable]) -> ParamTree:
        state = nnx.state(module, collection)
        return nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(v.axes), state, is_leaf=_is_variable))

    return ModelState(*map(facts, (nnx.Param, Frozen, Buffer)))


def _is_variable(x) -> bool:
    return isinstance(x, nnx.Variable)
