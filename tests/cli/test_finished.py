"""A run is used on the devices at hand, whether or not its mesh can be formed of them."""

import jax
import pytest
from tiny import variant

from jaxtrain.cli.finished import mesh_at_hand
from jaxtrain.mesh import MeshConfig


@pytest.mark.parametrize(
    "mesh, width, fsdp",
    [(MeshConfig(), 32, 8), (MeshConfig(), 36, 1), (MeshConfig(fsdp=16), 32, 1), (MeshConfig(data=3), 32, 1)],
    ids=["as it was", "does not divide the model", "too many devices", "does not divide the devices"],
)
def test_a_run_is_split_as_it_was_or_copied_whole(mesh, width, fsdp):
    at_hand = mesh_at_hand(mesh, variant(d_model=width))
    assert at_hand.shape["fsdp"] == fsdp and at_hand.size == jax.device_count() == 8
