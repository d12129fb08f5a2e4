"""Devices that are not there, to compile for: a TPU slice of any size on a laptop.

`devices_of("v5e:4x4")` gives devices for `MeshConfig.build`. `jax.jit(f).lower(...).compile()` with arguments laid out
on that mesh then runs the real compiler, with its memory analysis, collectives and out-of-memory errors; nothing can be
executed. Needs `libtpu`, the TPU compiler, which is an ordinary wheel. GPUs are left out: they need a compiler plugin
of their own and a description of the card.
"""

import os
from typing import Any

import jax
from jax.experimental import topologies

GENERATIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


def devices_of(topology: str) -> list[Any]:
    """Return the devices of a TPU topology, `<generation>:<chips along each axis>`, such as `v5e:4x4` or `v5p:4x4x4`.

    A chip of v4 and of tpu7x counts as two devices.

    Raises:
        ValueError: the name is not one of a topology, or the TPU compiler is not installed.
    """
    # The compiler looks for a TPU of its own and for a lock on it; neither matters where nothing runs.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    generation = topology.partition(":")[0]
    if generation not in GENERATIONS:
        raise ValueError(
            f"{topology=}: unknown generation {generation!r}; give one of {', '.join(GENERATIONS)} and the chips along "
            f"each axis, such as v5e:4x4 or v5p:4x4x4"
        )
    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"{topology=}: no such topology: {error}; give the chips along each axis, such as v5e:4x4 or v5p:4x4x4"
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{topology=}: the TPU compiler is not installed; `pip install libtpu` adds it, no TPU is needed"
        ) from error
