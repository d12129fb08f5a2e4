"""Ahead-of-time compilation of kernels for a topology, by the compiler of each platform."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from compiled_kernels import QUICKLY
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.planning.topology import compile_ahead_of_time, devices_of

TPUS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
H100 = "h100:1x1"


def mesh_of(topology: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Mesh:
    """Return a mesh of devices of the topology."""
    return Mesh(np.array(devices_of(topology)).reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))


@functools.cache
def one_device(topology: str) -> Mesh:
    """Return a mesh of one device of the topology."""
    return Mesh(np.array(devices_of(topology)[:1]), ("one",), axis_types=(AxisType.Auto,))


def compile_for(topology: str, function: Callable[..., Any], *arguments: Any) -> jax.stages.Compiled:
    """Return `function` compiled for one device of the topology; of the arguments, shapes and dtypes are used."""
    mesh = one_device(topology)
    whole = NamedSharding(mesh, P())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arguments)
    with jax.set_mesh(mesh):
        lowered = jax.jit(function).lower(*shapes)
        return compile_ahead_of_time(lowered, compiler_options=QUICKLY if topology == H100 else None)
