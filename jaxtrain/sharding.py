"""The rules from logical axes to mesh axes, and the layouts of arrays that follow from them.

Layers name the axes of their parameters and activations (`embed`, `heads`, `batch`, ...). Only this file knows which
mesh axes split each of them, so a layer runs unchanged on one device and on a pod.

The tensor axis is Shoeybi et al. (2019), arXiv:1909.08053, with activations sharded over the sequence between the
layers, Korthikanti et al. (2022), arXiv:2205.05198. Parameters stored in shards over `fsdp` are gathered by
`fully_sharded`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.axes import EXPERTS, Axes
from jaxtrain.mesh import OUTER
from jaxtrain.shapes import ModelState, ParamTree

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "repeats": ("stage",),
    "experts": ("tensor", "expert"),
    "embed": ("fsdp", OUTER, "expert"),
    "embed_blocks": ("fsdp", OUTER, "expert"),  # the scales of weights that are quantized in blocks along `embed`
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "rank": (),  # the inner axis of a low-rank product
    "latent": ("fsdp", OUTER, "expert"),  # the same where heads are made of it
    "mlp": ("tensor",),
    "vocab": ("stage", "tensor"),  # every stage has a part of the embedding and of the head
    "width": (),  # vectors of model width: norm scales, output biases
    "positions": (),  # rows of a learned table
    # activations
    "batch": ("replica", "data", "fsdp", OUTER, "expert"),
    "wide_batch": ("replica", "data"),  # rows whose width is split instead
    "expert_batch": ("replica", "data", "fsdp", OUTER),  # rows whose experts are split instead
    "places": ("context",),  # of an expert, for the tokens of a row
    "length": ("context",),
    "residual_length": ("context", "tensor"),  # between layers: sequence-sharded over tensor too
}
# Where not all mesh axes divide them, these are split over the last ones that do, and replicated over these others.
MAY_REPLICATE = {name: RULES[name] for name in ("repeats", "kv_heads", "vocab", "embed_blocks")}
MAY_REPLICATE |= {"experts": ("tensor",)}


def batch_shards(mesh: Mesh) -> int:
    """Return the number of devices over which the rows of a batch are split."""
    return _product(RULES["batch"], mesh)


def axis_size(name: str, size: int = 0) -> int:
    """Return the number of devices over which the current mesh splits a logical axis; 1 outside a mesh.

    An axis that may be replicated is split over fewer devices where not all of them divide its `size`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else _product(_dividing(name, size, _axes(name, mesh), mesh), mesh)


def on_one_device() -> bool:
    """Return whether the current mesh has one device, or there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def on_one_cpu() -> bool:
    """Return whether the current mesh is one CPU device. XLA for CPU fuses otherwise than for accelerators."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size == 1 and _platform(mesh) == "cpu"


def on_tpu() -> bool:
    """Return whether the current mesh is of TPUs, also of those that a program is compiled for ahead of time."""
    return _platform(jax.sharding.get_abstract_mesh()) == "tpu"


def _platform(mesh: jax.sharding.AbstractMesh) -> str | None:
    return mesh.abstract_device.platform if mesh.abstract_device is not None else None


def _product(axes: tuple[str, ...], mesh) -> int:
    return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def _axes(name: str | None, mesh, drop: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the mesh axes of a logical axis, without a region's manual axes: over those it is split already."""
    left_out = (*drop, *mesh.manual_axes)
    return () if name is None else tuple(axis for axis in RULES[name] if axis in mesh.shape and axis not in left_out)


def _dividing(name: str | None, size: int, axes: tuple[str, ...], mesh) -> tuple[str, ...]:
    """Return the axes over which a dimension is split: all, or the last ones that divide it if it may be replicated."""
    while axes and axes[0] in MAY_REPLICATE.get(name or "", ()) and size % _product(axes, mesh):
        axes = axes[1:]
    return axes


def activation_spec(names: Sequence[str | None], shape: Sequence[int], mesh) -> P:
    """Return the PartitionSpec of an activation. A dimension that its mesh axes do not divide is not split."""
    axes = [_dividing(name, size, _axes(name, mesh), mesh) for name, size in zip(names, shape, strict=True)]
    return P(*(a if a and size % _product(a, mesh) == 0 else None for a, size in zip(axes, shape, strict=True)))


class IndivisibleError(ValueError):
    """Mesh axes, of the sizes `over`, do not divide the dimension `name` of a parameter."""

    def __init__(self, name: str, size: int, over: dict[str, int]):
        self.name, self.size, self.over = name, size, over
        super().__init__(self.text(f"dimension {name!r} of size {size}"))

    def text(self, what: str) -> str:
        """Return the text of the error, in which the dimension is called `what`."""
        axes = " x ".join(f"mesh.{axis}={size}" for axis, size in self.over.items())
        of_one = f"a divisor of {self.size} for {axes.partition('=')[0]}"
        remedy = of_one if len(self.over) == 1 else f"axes whose product divides {self.size}"
        return f"{what} is not divisible by {axes}: choose {remedy}"


def parameter_spec(names: Sequence[str | None], shape: Sequence[int], mesh, *, drop: tuple[str, ...] = ()) -> P:
    """Return the PartitionSpec of a parameter that is not split over the mesh axes `drop`.

    Raises:
        IndivisibleError: mesh axes do not divide their dimension, and it is not one that may be replicated instead.
    """
    parts = []
    for name, size in zip(names, shape, strict=True):
        axes = _dividing(name, size, _parameter_axes(name, names, mesh, drop), mesh)
        if name is not None and size % _product(axes, mesh):
            raise IndivisibleError(name, size, {axis: mesh.shape[axis] for axis in axes if mesh.shape[axis] > 1})
        parts.append(axes or None)
    return P(*parts)


def _parameter_axes(name: str | None, names: Sequence[str | None], mesh, drop: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the mesh axes of one of the `names` of a parameter. Those of experts split nothing else, and stay."""
    if EXPERTS not in names:
        return _axes(name, mesh, drop)
    return _axes(name, mesh) if name == EXPERTS else _axes(name, mesh, (*drop, *RULES[EXPERTS]))


def shardings[Tree: (ParamTree, ModelState)](axes: Tree, shapes: Tree, mesh: Mesh | AbstractMesh) -> Tree:
    """Return the NamedSharding of every parameter of a tree, from the trees of facts and of shapes."""
    return jax.tree.map(
        lambda facts, leaf: NamedSharding(mesh, parameter_spec(facts.names, leaf.shape, mesh)), axes, shapes
    )


class Undivided(NamedTuple):
    """A dimension that the mesh `axes` of its rule do not divide, so that it is not split over those in `without`."""

    name: str
    size: int
    axes: tuple[str, ...]
    without: tuple[str, ...]


def undivided(axes: ParamTree | ModelState, shapes: ParamTree | ModelState, mesh) -> list[Undivided]:
    """Return the dimensions of a tree of parameters that are not split over all axes of their rule, each once."""
    found: dict[Undivided, None] = {}

    def look(facts: Axes, leaf):
        for name, size in zip(facts.names, leaf.shape, strict=True):
            over = tuple(axis for axis in _parameter_axes(name, facts.names, mesh) if mesh.shape[axis] > 1)
            without = over[: len(over) - len(_dividing(name, size, over, mesh))]
            if name and without:
                found[Undivided(name, size, over, without)] = None

    jax.tree.map(look, axes, shapes)
    return list(found)


def splits_alike(part: tuple[int, ...], shape: tuple[int, ...], sharding: NamedSharding) -> bool:
    """Tell whether `sharding`, which splits arrays of `shape`, also splits arrays of shape `part` into equal pieces."""
    if len(part) != len(shape):
        return False
    pieces = (size // shard for size, shard in zip(shape, sharding.shard_shape(shape), strict=True))
    return all(n % count == 0 for n, count in zip(part, pieces, strict=True))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Return an activation constrained to the layout of its logical axes; unchanged where no axis of a mesh is auto."""
    mesh = jax.sharding.get_abstract_mesh()
    if set(mesh.axis_names) == set(mesh.manual_axes):
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(names, x.shape, mesh))


def on_each_device(function: Callable, *named: tuple[jax.Array | None, Sequence[str | None]]) -> jax.Array:
    """Return `function` of the arrays, run by every device on its own parts of them.

    For kernels, which the compiler does not partition. Each array comes with the logical names of its axes; axes
    without a name are gathered. The result is laid out like the first array.
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
    """Return `function` of the trees, run by every device on its own shards of them.

    For kernels, which the compiler does not partition. The first tree is a parameter whose axes have these names. All
    leaves, those of the results too, are split like it.

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
    """Return the index of this device's part of a logical axis. Call it inside `on_each_device`."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(axis for axis in RULES[name] if axis in mesh.shape)  # all are manual there
    return jax.lax.axis_index(axes) if _product(axes, mesh) > 1 else 0
