"""Where parameters and activations lie on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from messages import refused
from tiny import PRESETS

from jaxtrain.fully_sharded import GATHERED
from jaxtrain.mesh import AXES, OUTER, MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.sharding import RULES, activation_spec, axis_size, batch_shards, constrain, parameter_spec, shardings


def test_every_rule_maps_to_axes_of_the_mesh():
    assert {axis for axes in RULES.values() for axis in axes} <= {*AXES, OUTER}


@pytest.fixture
def mesh():
    return MeshConfig(data=2, fsdp=2, tensor=2).build()


def test_column_and_row_parallel_matrices_split_the_inner_side_over_tensor(mesh):
    assert parameter_spec(("embed", "mlp"), (8, 16), mesh) == P(("fsdp", "expert"), ("tensor",))
    assert parameter_spec(("mlp", "embed"), (16, 8), mesh) == P(("tensor",), ("fsdp", "expert"))
    output = parameter_spec(("heads", "head_dim", "embed"), (4, 3, 8), mesh)
    assert output == P(("tensor",), None, ("fsdp", "expert"))
    assert parameter_spec(("repeats", "width"), (5, 8), mesh) == P(("stage",), None)


def test_a_parameter_drops_the_axes_it_is_gathered_over(mesh):
    assert parameter_spec(("embed", "mlp"), (8, 16), mesh, drop=GATHERED) == P(None, ("tensor",))


def test_experts_stay_split_over_axes_that_shard_the_width_of_all_else():
    names, shape, mesh = ("experts", "embed", "mlp"), (4, 8, 16), MeshConfig(fsdp=2, expert=2, tensor=2).build()
    assert parameter_spec(names, shape, mesh) == P(("tensor", "expert"), ("fsdp",), None)
    assert parameter_spec(names, shape, mesh, drop=GATHERED) == P(("tensor", "expert"), None, None)


@pytest.mark.parametrize("name", ["kv_heads", "vocab"])
def test_few_key_value_heads_and_odd_vocabularies_are_whole_on_every_device(mesh, name):
    assert parameter_spec((name, "head_dim"), (3, 4), mesh) == P(None, None)


@pytest.mark.parametrize(("name", "axis"), [("heads", "tensor"), ("mlp", "tensor"), ("embed", "fsdp")])
def test_a_dimension_that_its_axis_does_not_divide_is_refused_with_axis_and_size(mesh, name, axis):
    with refused(ValueError, f"{axis}=2", f"'{name}'", 7):
        parameter_spec((name,), (7,), mesh)


def test_activations_are_split_by_rows_and_between_layers_by_length(mesh):
    names = ("batch", "residual_length", None)
    assert activation_spec(names, (8, 4, 6), mesh) == P(
        ("replica", "data", "fsdp", "expert"), ("context", "tensor"), None
    )
    assert activation_spec(names, (8, 3, 6), mesh)[1] is None  # a length that does not divide stays whole


@pytest.mark.parametrize("name", PRESETS)
def test_every_matrix_of_a_preset_is_split_over_fsdp_and_tensor(name, mesh):
    _, (shapes, *_), (axes, *_) = abstract_model(PRESETS[name])
    layout = shardings(axes, shapes, mesh)
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(layout), strict=True
    ):
        shards = leaf.size // np.prod(sharding.shard_shape(leaf.shape))
        learned_positions = path[0].key == "positions"  # short, and not read by columns
        if leaf.size > 2048:
            assert shards == (2 if learned_positions else 4), path


def test_rows_are_split_over_every_axis_that_does_not_split_a_row():
    assert batch_shards(MeshConfig(replica=2, data=2, fsdp=2).build()) == 8
    assert batch_shards(MeshConfig(context=2, fsdp=2, tensor=2).build()) == 2


def test_outside_a_mesh_everything_stays_where_it_is():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x
    assert axis_size("heads") == 1


def test_inside_a_mesh_a_constraint_lays_an_activation_out(mesh):
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, "batch", "length", "mlp"))(jnp.ones((8, 4, 6)))
        assert axis_size("mlp") == 2
    assert y.sharding.shard_shape(y.shape) == (2, 4, 3)
