"""Where arrays lie: the one table from logical axis names to mesh axes, and the layouts that follow from it.

Layers name the axes of their parameters and activations (`embed`, `heads`, `batch`, ...). This file alone knows which
mesh axis each name lies on, so a layer runs unchanged on one device and on a pod.

The tensor axis is Shoeybi et al. (2019), arXiv:1909.08053, with activations sharded over the sequence between the
layers, Korthikanti et al. (2022), arXiv:2205.05198. Parameters that are stored in shards of `fsdp` are gathered in
`fully_sharded`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.axes import Axes
from jaxtrain.mesh import OUTER

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "repeats": ("stage",),
    "embed": ("fsdp", OUTER),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "rank": (),  # the narrow side of a product of two thin matrices
    "mlp": ("tensor",),
    "vocab": ("stage", "tensor"),  # every stage has its part of embedding and head
    "width": (),  # vectors of model width: norm scales, output biases
    "places": (),  # learned positions
    # activations
    "batch": ("replica", "data", "fsdp", OUTER, "expert"),
    "wide_batch": ("replica", "data", "expert"),  # rows whose width is split over fsdp instead
    "length": ("context",),
    "residual_length": ("context", "tensor"),  # between layers: sequence-sharded over tensor too
}
MAY_REPLICATE = ("repeats", "kv_heads", "vocab")  # where the axes do not divide them, split over the last ones or whole


def batch_shards(mesh: Mesh) -> int:
    """Return over how many devices the rows of a batch are split."""
    return _product(RULES["batch"], mesh)


def axis_size(name: str, size: int = 0) -> int:
    """Return over how many devices a logical axis is split in the mesh at hand; 1 outside a mesh.

    Where the devices do not divide its `size`, it may be split over fewer of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _product(_dividing(name, size, _axes(name, mesh), mesh), mesh)


def _product(axes: tuple[str, ...], mesh) -> int:
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def _axes(name: str | None, mesh, drop: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the mesh axes of a logical axis; inside a region, without its manual axes, over which it is split."""
    left_out = (*drop, *mesh.manual_axes)
    return () if name is None else tuple(axis for axis in RULES[name] if axis in mesh.shape and axis not in left_out)


def _dividing(name: str | None, size: int, axes: tuple[str, ...], mesh) -> tuple[str, ...]:
    """Return the axes over which a dimension is split: all of them, or the last ones that divide it where it may."""
    while name in MAY_REPLICATE and size % _product(axes, mesh):
        axes = axes[1:]
    return axes


def activation_spec(names: Sequence[str | None], shape: Sequence[int], mesh) -> P:
    """Return the partition of an activation; an axis that does not divide its dimension is left out."""
    axes = [_dividing(name, size, _axes(name, mesh), mesh) for name, size in zip(names, shape, strict=True)]
    return P(*(a if a and size % _product(a, mesh) == 0 else None for a, size in zip(axes, shape, strict=True)))


def parameter_spec(names: Sequence[str | None], shape: Sequence[int], mesh, *, drop: tuple[str, ...] = ()) -> P:
    """Return the partition of a parameter.

    Raises:
        ValueError: a mesh axis does not divide its dimension and it is not one that may be replicated instead.
    """
    parts = []
    for name, size in zip(names, shape, strict=True):
        axes = _dividing(name, size, _axes(name, mesh, drop), mesh)
        if size % _product(axes, mesh):
            raise ValueError(
                f"mesh axis {'x'.join(axes)}={_product(axes, mesh)} does not divide the "
                f"dimension {name!r} of size {size}: choose a divisor of {size} for the axis"
            )
        parts.append(axes or None)
    return P(*parts)


def shardings(axes: dict, shapes: dict, mesh: Mesh) -> dict:
    """Return the NamedSharding of every parameter of a tree, from the trees of facts and of shapes."""
    return jax.tree.map(
        lambda own, leaf: NamedSharding(mesh, parameter_spec(own.names, leaf.shape, mesh)), axes, shapes
    )


class Undivided(NamedTuple):
    """A dimension that the axes of its rule do not divide together, so that it is not split over some of them."""

    name: str
    size: int
    axes: tuple[str, ...]
    without: tuple[str, ...]


def undivided(axes: dict, shapes: dict, mesh) -> list[Undivided]:
    """Return the dimensions of a tree of parameters that are not split over all axes of their rule, each once."""
    found: dict[Undivided, None] = {}

    def look(own: Axes, leaf):
        for name, size in zip(own.names, leaf.shape, strict=True):
            over = tuple(axis for axis in _axes(name, mesh) if mesh.shape[axis] > 1)
            without = over[: len(over) - len(_dividing(name, size, over, mesh))]
            if without:
                found[Undivided(name, size, over, without)] = None

    jax.tree.map(look, axes, shapes)
    return list(found)


def splits_alike(part: tuple[int, ...], shape: tuple[int, ...], sharding: NamedSharding) -> bool:
    """Tell whether the layout of an array splits one of as many axes, in fewer pieces along each, evenly too."""
    if len(part) != len(shape):
        return False
    pieces = (size // own for size, own in zip(shape, sharding.shard_shape(shape), strict=True))
    return all(n % count == 0 for n, count in zip(part, pieces, strict=True))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lay an activation out by the logical names of its axes; outside a mesh, return it as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(names, x.shape, mesh))


def on_each_device(function: Callable, *named: tuple[jax.Array | None, Sequence[str | None]]) -> jax.Array:
    """Return `function` of the arrays, computed by every device from its own parts: for kernels.

    The compiler splits no kernel over devices. Each array comes with the logical names of its axes; those without a
    name are gathered. The result is laid out like the first array.
    """
    arrays, names = zip(*named, strict=True)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    specs = tuple(
        P() if x is None else activation_spec(axes, x.shape, mesh) for x, axes in zip(arrays, names, strict=True)
    )
    return jax.shard_map(function, in_specs=specs, out_specs=specs[0])(*arrays)


def on_each_shard(function: Callable, names: Sequence[str | None], *trees):
    """Return `function` of trees, computed by every device from its own shards of them: for kernels.

    The first tree is a parameter with these names; all leaves, of results too, are split like it.

    Raises:
        ValueError: a leaf cannot be split like the parameter.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*trees)
    shape, spec = trees[0].shape, parameter_spec(names, trees[0].shape, mesh)
    for leaf in jax.tree.leaves(trees):
        if not splits_alike(leaf.shape, shape, NamedSharding(mesh, spec)):
            raise ValueError(
                f"a parameter of shape {shape} split as {spec} with {leaf.shape} blocks: a kernel needs whole "
                "blocks a shard; take the default implementation, or fewer devices along these axes"
            )
    return jax.shard_map(function, in_specs=spec, out_specs=spec)(*trees)


def index_on(name: str) -> jax.Array | int:
    """Return which part of a logical axis a device has, inside `on_each_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(axis for axis in RULES[name] if axis in mesh.shape)  # all manual in there
    return jax.lax.axis_index(axes) if _product(axes, mesh) > 1 else 0
