"""The manual region in which devices compute their own experts."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.axes import EXPERTS
from jaxtrain.fully_sharded import GATHERED
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.sharding import IndivisibleError, activation_spec, parameter_spec

Named = tuple[jax.Array, Sequence[str | None]]
TOKENS = ("batch", "residual_length", None)  # each token on one device, as between layers


class Split(NamedTuple):
    """The mesh axes over which experts are split, and those over which the first array is."""

    experts: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    @property
    def apart(self) -> tuple[str, ...]:
        """The axes over which experts and tokens are split: tokens have to come to their experts."""
        return tuple(axis for axis in self.experts if axis in self.rows)

    @property
    def alike(self) -> tuple[str, ...]:
        """The axes over which experts are split and tokens are not: all devices have them already."""
        return tuple(axis for axis in self.experts if axis not in self.rows)


def split_of(experts: int, shape: Sequence[int], names: Sequence[str | None], mesh) -> Split:
    """Return how a mesh splits a number of experts, and an array with these names of its axes."""
    own = parameter_spec((EXPERTS,), (experts,), mesh, drop=GATHERED)
    return Split(_axes_of(own[0]), sum(map(_axes_of, activation_spec(names, shape, mesh)), ()))


def check_experts(experts: int, what: str, mesh) -> None:
    """Raise ValueError if a mesh cannot split a number of experts, of which the text says that it is `what`."""
    try:
        split_of(experts, (), (), mesh)
    except IndivisibleError as error:
        raise ValueError(error.text(what)) from error


def in_region(function: Callable[..., jax.Array], experts: Experts, *named: Named) -> jax.Array:
    """Return `function(arrays of experts, Split, *arrays)`.

    Every device has its own experts and its own parts of the arrays, which come with the logical names of their axes.
    The result is laid out like the first.
    """
    arrays, names = zip(*named, strict=True)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(experts.arrays, Split(), *arrays)
    own = jax.tree.map(
        lambda facts, w: parameter_spec(facts.names, w.shape, mesh, drop=GATHERED), experts.axes, experts.arrays
    )
    specs = tuple(activation_spec(axes, x.shape, mesh) for x, axes in zip(arrays, names, strict=True))
    over = split_of(experts.count, arrays[0].shape, names[0], mesh)
    region = jax.shard_map(lambda own, *parts: function(own, over, *parts), in_specs=(own, *specs), out_specs=specs[0])
    return region(experts.arrays, *arrays)


def in_region_of_tokens(
    function: Callable[..., jax.Array], x: Float[Array, "B L D"], routing: Routing, experts: Experts
) -> Float[Array, "B L D"]:
    """Return `function(arrays, Split, tokens [T, D], numbers [T, K], weights [T, K])` of a device's tokens, as `x` is.

    `numbers` are those of a token's experts, and E where it has fewer. They are listed by each device for itself: XLA
    for CPU does not partition top-k, and would gather what it chooses from.
    """

    def of_device(arrays, split, x_BLD, chosen_BLE, weights_BLE):
        own = routing._replace(chosen=chosen_BLE, weights=weights_BLE)
        numbers_BLK, weights_BLK, there_BLK = own.listed()
        numbers_BLK = jnp.where(there_BLK > 0, numbers_BLK, chosen_BLE.shape[-1])
        tokens = x_BLD.shape[0] * x_BLD.shape[1]
        flat = (part.reshape(tokens, -1) for part in (x_BLD, numbers_BLK, weights_BLK.astype(x_BLD.dtype)))
        return function(arrays, split, *flat).reshape(x_BLD.shape)

    return in_region(of_device, experts, *((part, TOKENS) for part in (x, routing.chosen, routing.weights)))


class Load(NamedTuple):
    """What a layer has to move, as a device sees it.

    A device has `tokens` of `width` values, and so many `experts` of its own. Tokens come to experts `apart` over so
    many devices; `alike` devices have the same tokens and other experts.
    """

    tokens: int
    width: int
    top_k: int
    experts: int
    apart: int
    alike: int


def load_of(shape: Sequence[int], experts: int, top_k: int, mesh) -> Load:
    """Return what a layer has to move for an array of tokens [B, L, D] over a mesh."""
    if mesh.empty:
        return Load(shape[0] * shape[1], shape[2], top_k, experts, 1, 1)
    split = split_of(experts, shape, TOKENS, mesh)
    apart, alike, rows = (math.prod(mesh.shape[a] for a in axes) for axes in (split.apart, split.alike, split.rows))
    return Load(shape[0] * shape[1] // rows, shape[2], top_k, experts // (apart * alike), apart, alike)


def _axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()
