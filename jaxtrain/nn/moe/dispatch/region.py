"""The manual region in which devices compute their own experts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from jaxtrain.fully_sharded import GATHERED
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.sharding import activation_spec, parameter_spec

Named = tuple[jax.Array, Sequence[str | None]]


class Split(NamedTuple):
    """The mesh axes over which experts are split, and those over which the first array is."""

    experts: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


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
    of_one = jax.tree.leaves(own, is_leaf=lambda x: isinstance(x, P))[0]
    over = Split(_axes_of(of_one[0]), sum(map(_axes_of, specs[0]), ()))
    region = jax.shard_map(lambda own, *parts: function(own, over, *parts), in_specs=(own, *specs), out_specs=specs[0])
    return region(experts.arrays, *arrays)


def _axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()
