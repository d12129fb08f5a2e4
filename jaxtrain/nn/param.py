"""Parameters that carry the facts about themselves, and what layers are told about the tokens they see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxtrain.axes import Axes, Kind


class TokenContext(NamedTuple):
    """What every layer may know of its tokens. Keys and queries differ only when decoding with a cache.

    `dropout_keys` hold one key an example, or None where nothing is dropped: the noise of an example depends on its
    index in the global batch and on the layer, never on the mesh or on the microbatch it came in.
    """

    positions: Int[Array, "B L"]
    segment_ids: Int[Array, "B L"]
    key_positions: Int[Array, "B S"]
    key_segment_ids: Int[Array, "B S"]
    cache_index: Int[Array, ""] | None = None
    dropout_keys: Key[Array, " B"] | None = None

    def in_layer(self, layer: Int[Array, ""] | int) -> "TokenContext":
        """Return the context with the dropout keys of one layer of a stack."""
        return self._replace(dropout_keys=fold_in(self.dropout_keys, layer))


def fold_in(keys: Key[Array, " B"] | None, data: Int[Array, ""] | int) -> Key[Array, " B"] | None:
    """Fold one number into the key of every example."""
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


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


def axes_of(module: nnx.Module) -> dict:
    """Return the facts about a module's parameters, as a tree like the parameters."""
    state = nnx.state(module, nnx.Param)
    return nnx.to_pure_dict(jax.tree.map(lambda p: p.replace(p.axes), state, is_leaf=_is_param))


def _is_param(x) -> bool:
    return isinstance(x, nnx.Variable)


def dropout(
    x: Float[Array, "B *rest"], rate: float, keys: Key[Array, " B"] | None, site: int
) -> Float[Array, "B *rest"]:
    """Zero elements with probability `rate` and scale the rest by 1/(1-rate); identity without keys.

    `site` numbers the places within a layer that drop.
    """
    if keys is None or rate == 0.0:
        return x
    keep_B = fold_in(keys, site)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keep_B)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
