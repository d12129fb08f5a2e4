"""The mesh of a configuration: its axes and their sizes."""

import jax
import pytest
from messages import refused

from jaxtrain.mesh import AXES, MeshConfig


def test_axes_go_from_the_slowest_links_to_the_fastest():
    mesh = MeshConfig(replica=2, data=2, tensor=2, fsdp=1).build()
    assert mesh.axis_names == AXES == ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")
    assert mesh.devices.shape == (2, 1, 2, 1, 1, 1, 2)
    assert all(axis_type == jax.sharding.AxisType.Auto for axis_type in mesh.axis_types)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (1, 1, 1, 8, 1, 1, 1)),
        (MeshConfig(tensor=4), (1, 1, 1, 2, 1, 1, 4)),
        (MeshConfig(fsdp=2, data=-1), (1, 1, 4, 2, 1, 1, 1)),
        (MeshConfig(fsdp=1, context=-1, replica=2), (2, 1, 1, 1, 1, 4, 1)),
    ],
)
def test_the_open_axis_takes_what_the_others_leave(config, sizes):
    assert config.sizes(8) == sizes


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (MeshConfig(tensor=3), ("tensor=3", "multiply to 3")),
        (MeshConfig(tensor=16), ("tensor=16", "multiply to 16")),
        (MeshConfig(fsdp=4), ("fsdp=4", "to -1")),
        (MeshConfig(fsdp=4, data=4), ("data=4 x fsdp=4", "to -1")),
        (MeshConfig(fsdp=1), ("one device",)),
    ],
    ids=["tensor 3", "tensor 16", "fsdp 4", "fsdp 4, data 4", "none"],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused_with_its_axes_and_the_remedy(config, facts):
    with refused(ValueError, "8 devices", *facts):
        config.build()


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"data": 0}, r"mesh\.data=0: .*at least 1"),
        ({"tensor": -2}, r"mesh\.tensor=-2: .*at least 1"),
        ({"data": -1}, "only one axis can be -1"),
    ],
)
def test_impossible_axes_are_refused_by_name(axes, said):
    with pytest.raises(ValueError, match=said):
        MeshConfig(**axes)
