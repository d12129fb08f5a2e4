"""The named device mesh: its axes, and how devices are laid out along them.

The axes are Auto: the compiler partitions over them. The rules of what is split over which axis are in `sharding`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")  # slowest links first
OUTER = "fsdp_outer"  # a mesh has it, after `fsdp`, where the devices of `fsdp` span more than a plane of a 3-D torus


class MisfitError(ValueError):
    """A mesh does not fit a number of devices. It fits `needed` devices, or a multiple of them."""

    def __init__(self, message: str, needed: int):
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshConfig:
    """The number of devices along each axis. One of them may be -1: what the other axes leave over."""

    replica: int = 1
    stage: int = 1
    data: int = 1
    fsdp: int = -1
    expert: int = 1
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
        """Return the axis sizes for a number of devices. Raises MisfitError where they do not multiply to it."""
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
        """Return the mesh over `devices` (all devices by default), with the last axes along the fastest links."""
        devices = jax.devices() if devices is None else devices
        shape = dict(zip(AXES, self.sizes(len(devices)), strict=True))
        outer = _planes_spanned(devices, shape["fsdp"])
        if outer > 1:
            upto = {name: shape[name] for name in AXES[: AXES.index("fsdp") + 1]}
            shape = upto | {OUTER: outer} | shape | {"fsdp": shape["fsdp"] // outer}
        types = (AxisType.Auto,) * len(shape)
        return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=types, devices=list(devices))


def _planes_spanned(devices: Sequence[jax.Device], fsdp: int) -> int:
    """Return how many planes of a TPU's torus an fsdp group spans.

    XLA for TPU has no all-gather and no reduce-scatter over a group that spans three dimensions of the torus, only an
    all-reduce of the whole, which moves twice as much. It has both in two hops: first between planes, while the pieces
    are small, then within each plane.
    """
    if devices[0].platform != "tpu":
        return 1
    bounds = [len({device.coords[axis] for device in devices}) for axis in range(len(devices[0].coords))]
    plane = math.prod(sorted(bounds)[-2:])
    return fsdp // plane if fsdp > plane and fsdp % plane == 0 else 1
