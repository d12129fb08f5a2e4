"""The named device mesh, and the one table from logical axis names to mesh axes.

Layers name the axes of their parameters and activations (`embed`, `heads`, `batch`, ...). This file alone knows which
mesh axis each name lies on, so a layer runs unchanged on one device and on a pod. Axes are Auto: the compiler
partitions, and the constraints below tell it where.

Fully sharded data parallelism is Rajbhandari et al. (2020), arXiv:1910.02054 (stage 3); the tensor axis is Shoeybi et
al. (2019), arXiv:1909.08053, with activations sharded over the sequence between the layers, Korthikanti et al. (2022),
arXiv:2205.05198.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import primal_tangent_dtype
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.axes import Axes

AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")  # slowest links first
OUTER = "fsdp_outer"  # a mesh has it, after `fsdp`, where the devices of `fsdp` fill more than a plane of a 3-D torus

RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "layers": ("stage",),
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
GATHERED = ("fsdp", OUTER)  # axes over which a parameter is stored in shards and gathered for use, the last first
MAY_REPLICATE = ("layers", "kv_heads", "vocab")  # where the axes do not divide them, split over the last ones or whole


class MisfitError(ValueError):
    """A mesh and a number of devices that do not go together; `needed` devices, or a multiple of them, would."""

    def __init__(self, message: str, needed: int):
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshConfig:
    """Devices along each axis. One of them may be -1: whatever the other axes leave over."""

    replica: int = 1
    stage: int = 1
    data: int = 1
    fsdp: int = -1
    expert: ClassVar[int] = 1  # the axis waits for mixtures of experts
    context: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name in AXES:
            size = getattr(self, name)
            if size < 1 and size != -1:
                raise ValueError(f"mesh.{name}={size}: an axis is at least 1, or -1 for what the others leave over")
        if sum(getattr(self, name) == -1 for name in AXES) > 1:
            raise ValueError("mesh: only one axis can be -1, what the others leave over; give the rest a number")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Return the axis sizes for so many devices. Raises MisfitError where they do not multiply to it."""
        given = [getattr(self, name) for name in AXES]
        known = math.prod(size for size in given if size != -1)
        sizes = tuple(devices // known if size == -1 else size for size in given)
        if math.prod(sizes) != devices:
            shown = " x ".join(f"{name}={size}" for name, size in zip(AXES, given, strict=True) if size != 1)
            remedy = (
                f"the axes given multiply to {known}, which does not divide {devices}; change one of them"
                if -1 in given
                else f"the axes must multiply to {devices}; set one of them to -1 to take what is left over"
            )
            raise MisfitError(f"mesh {shown or 'of one device'} does not fit {devices} devices: {remedy}", known)
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """Return the mesh over `devices` (all devices by default), laid out along the fast links."""
        devices = jax.devices() if devices is None else devices
        shape = dict(zip(AXES, self.sizes(len(devices)), strict=True))
        outer = _hops_outside_a_plane(devices, shape["fsdp"])
        if outer > 1:
            upto = {name: shape[name] for name in AXES[: AXES.index("fsdp") + 1]}
            shape = upto | {OUTER: outer} | shape | {"fsdp": shape["fsdp"] // outer}
        types = (AxisType.Auto,) * len(shape)
        return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=types, devices=np.asarray(devices))


def _hops_outside_a_plane(devices: Sequence[jax.Device], fsdp: int) -> int:
    """Return into how many planes of a TPU's torus an fsdp group reaches, 1 if one plane holds it.

    XLA for TPU has no all-gather and no reduce-scatter over a group that spans three dimensions of the torus, only
    an all-reduce of the whole, which moves twice as much. In two hops it has both: between planes first, while the
    pieces are small, then within them.
    """
    if devices[0].platform != "tpu":
        return 1
    bounds = [len({device.coords[axis] for device in devices}) for axis in range(len(devices[0].coords))]
    plane = math.prod(sorted(bounds)[-2:])
    return fsdp // plane if fsdp > plane and fsdp % plane == 0 else 1


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


def lay_out(params, axes):
    """Lay a tree of parameters, or of their gradients, out in shards."""
    return jax.tree.map(lambda own, w: _place(w, own.names, ()), axes, params)


def _place(x: jax.Array, names: tuple, drop: tuple[str, ...]) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, parameter_spec(names, x.shape, mesh, drop=drop))


def of_layer(params, layer: jax.Array):
    """Return one layer of stacked parameters, from the stage that stores it to all stages.

    Left to itself the compiler gathers the whole stack for every layer that is read from it.
    """
    stages = axis_size("layers")

    def one(stack):
        if stages == 1 or len(stack) % stages:
            return stack[layer]
        by_stage = stack.reshape(stages, -1, *stack.shape[1:])
        at_stage, place = layer // by_stage.shape[1], layer % by_stage.shape[1]
        there = jnp.arange(stages).reshape(-1, *(1,) * (stack.ndim - 1)) == at_stage
        own = jnp.where(there, jax.lax.dynamic_index_in_dim(by_stage, place, axis=1, keepdims=False), 0)
        return jax.lax.reduce(own, jnp.zeros((), own.dtype), jax.lax.add, (0,))

    return jax.tree.map(one, params)


def narrow_gradients(params, axes, dtype):
    """Return the same parameters; gradients of those that a gather casts are in `dtype` rather than in their own.

    They are computed and summed over devices in the compute dtype, so that widening them loses and gains nothing. Done
    before a scan over stacked parameters, the stack of their gradients, the largest buffer of a train step, takes half
    the memory in bf16; it is widened behind the scan, where it is read.
    """

    return jax.tree.map(lambda own, w: _narrow_gradient(w, np.dtype(dtype)) if own.cast else w, axes, params)


def _narrow_gradient(w: jax.Array, dtype: np.dtype) -> jax.Array:
    if jnp.issubdtype(w.dtype, jax.dtypes.extended) or w.dtype == dtype:
        return w
    return jax.lax.convert_element_type(w, primal_tangent_dtype(w.dtype, dtype))


def narrow(params, axes, dtype):
    """Return the parameters as a gather casts them, for where a copy of them is made anyway."""
    return jax.tree.map(lambda own, w: w.astype(dtype) if own.cast else w, axes, params)


def gather(params, axes, dtype):
    """Return parameters ready for use: those that may be cast in the compute dtype, all of them whole along `fsdp`.

    Called where a layer uses its parameters, so inside the scan over layers only one layer is whole at a time.
    Vectors (norm scales, biases) keep their dtype. Gradients come back in the layout of the shards.
    """

    def one(own: Axes, w):
        to = np.dtype(dtype) if own.cast else w.dtype
        if not jnp.issubdtype(to, jnp.floating):
            return _place(_place(w, own.names, GATHERED[1:]), own.names, GATHERED)
        return _gather(_narrow_gradient(w, to), own.names, to)

    return jax.tree.map(one, axes, params)


def scatter_gradients(gradients, axes):
    """Return the gradients of gathered parameters, summed over devices into the layout of the shards."""
    return jax.tree.map(lambda own, dw: _scatter(dw, own.names), axes, gradients)


def _scatter(dw: jax.Array, names: tuple) -> jax.Array:
    # The transpose of a constraint is the same constraint, which would all-reduce whole gradients. Constraining the
    # gradient to the layout of the shards lets the compiler reduce-scatter.
    return _place(_place(dw, names, GATHERED[1:]), names, ())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w, names, dtype):
    # The first constraint keeps the cast on the shards, so that what travels is in `dtype`; then one hop an axis.
    w = _place(_round(jax.lax.convert_element_type(w, jnp.float32), dtype), names, ())
    return _place(_place(w, names, GATHERED[1:]), names, GATHERED)


def _gather_forward(w, names, dtype):
    return _gather(w, names, dtype), None


def _gather_backward(names, dtype, _, dw):
    return (_scatter(dw, names),)


_gather.defvjp(_gather_forward, _gather_backward)


def _round(w: jax.Array, dtype: np.dtype) -> jax.Array:
    # XLA moves a plain cast of the stacked weights out of the scan over layers and keeps a second copy of all of them;
    # an explicit rounding to the same bits it leaves where it is.
    if dtype == jnp.bfloat16:
        w = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return w.astype(dtype)
