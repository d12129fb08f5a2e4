"""Ahead-of-time compilation for a topology: a TPU slice or GPU servers of any size, on a laptop.

`devices_of("v5e:4x4")` gives devices for `MeshConfig.build`. `compile_ahead_of_time(jax.jit(f).lower(...))`, with
arguments sharded over that mesh, then runs the real compiler, with its memory analysis, collectives and out-of-memory
errors. Nothing can be executed. TPUs need `libtpu`, GPUs the CUDA plugin of JAX and `ptxas`: ordinary wheels, no driver
and no CUDA libraries. A GPU is described to the compiler by a file in targets/.
"""

import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache.compilation_cache import reset_cache

TARGETS = Path(__file__).parent / "targets"
TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
GPUS = ("h100",)
# The TPU compiler looks for a local TPU, for a lock on it and for the other hosts, and complains if there are none.
# These variables stop that: nothing runs here.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_HOST_BOUNDS": "1,1,1",
}
EXAMPLES = "v5e:4x4, v5p:4x4x4 or h100:2x8"


def devices_of(topology: str) -> list[Any]:
    """Return the devices of a topology: `<TPU generation>:<chips along each axis>`, or `h100:<servers>x<GPUs in each>`.

    A chip of v4 and of tpu7x counts as two devices.

    Raises:
        ValueError: the name is not one of a topology, or the compiler for it is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind in TPUS:
        return _tpus(topology)
    if kind in GPUS:
        return _gpus(topology, kind, shape)
    known = ", ".join((*TPUS, *GPUS))
    raise ValueError(f"{topology=}: unknown kind of device {kind!r}; give one of {known} and a shape: {EXAMPLES}")


def stay_on_cpu() -> None:
    """Make JAX run on CPU, unless the user chose a platform. With libtpu installed it would look for a TPU."""
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")


def compile_ahead_of_time(
    lowered: jax.stages.Lowered, *, compiler_options: dict[str, bool | int | str] | None = None
) -> jax.stages.Compiled:
    """Compile ahead of time for a topology, without the persistent compilation cache.

    The cache stores such programs but cannot return them: it loads a program onto a device.
    """
    enabled = jax.config.jax_enable_compilation_cache
    try:
        _enable_cache(False)
        return lowered.compile(compiler_options=compiler_options)
    finally:
        _enable_cache(enabled)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    reset_cache()  # JAX asks only once in a process whether there is a cache to use


def _tpus(topology: str) -> list[Any]:
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"{topology=}: no such topology: {error}; give the chips along each axis: {EXAMPLES}"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{topology=}: the TPU compiler is not installed; `pip install libtpu` adds it, no TPU is needed"
        ) from error


def _gpus(topology: str, kind: str, shape: str) -> list[Any]:
    counts = shape.split("x")
    if len(counts) != 2 or not all(count.isdecimal() and int(count) for count in counts):
        raise ValueError(f"{topology=}: give servers and GPUs in each: {EXAMPLES}")
    try:
        return list(
            topologies.get_topology_desc(
                topology_name=kind,
                platform="cuda",
                topology=f"1x{shape}",
                target_config=(TARGETS / f"{kind}.txtpb").read_text(),
            ).devices
        )
    except NotImplementedError as error:
        raise ValueError(
            f"{topology=}: the GPU compiler is not installed; `pip install jax-cuda13-plugin jax-cuda13-pjrt "
            f"nvidia-cuda-nvcc` adds it, no GPU is needed"
        ) from error
