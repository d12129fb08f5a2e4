"""The mesh of a configuration, and where parameters and activations lie on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import PRESETS, matrix, vector
from tolerances import EXACT, assert_close

from jaxtrain.axes import Axes, Kind
from jaxtrain.mesh import (
    AXES,
    OUTER,
    RULES,
    MeshConfig,
    activation_spec,
    axis_size,
    batch_shards,
    constrain,
    gather,
    parameter_spec,
    shardings,
)
from jaxtrain.models.decoder import abstract_model


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
    ("config", "said"),
    [
        (MeshConfig(tensor=3), "tensor=3 .*multiply to 3, which does not divide 8; change one"),
        (MeshConfig(tensor=16), "tensor=16 .*multiply to 16, which does not divide 8; change one"),
        (MeshConfig(fsdp=4), "fsdp=4 .*must multiply to 8; set one of them to -1"),
        (MeshConfig(fsdp=4, data=4), "data=4 x fsdp=4 .*must multiply to 8; set one of them to -1"),
        (MeshConfig(fsdp=1), "of one device .*must multiply to 8"),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused_with_its_axes_and_the_remedy(config, said):
    with pytest.raises(ValueError, match=said) as error:
        config.build()
    assert "does not fit 8 devices" in str(error.value)


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


def test_every_rule_maps_to_axes_of_the_mesh():
    assert {axis for axes in RULES.values() for axis in axes} <= {*AXES, OUTER}


@pytest.fixture
def mesh():
    return MeshConfig(data=2, fsdp=2, tensor=2).build()


def test_column_and_row_parallel_matrices_split_the_inner_side_over_tensor(mesh):
    assert parameter_spec(("embed", "mlp"), (8, 16), mesh) == P(("fsdp",), ("tensor",))
    assert parameter_spec(("mlp", "embed"), (16, 8), mesh) == P(("tensor",), ("fsdp",))
    assert parameter_spec(("heads", "head_dim", "embed"), (4, 3, 8), mesh) == P(("tensor",), None, ("fsdp",))
    assert parameter_spec(("layers", "width"), (5, 8), mesh) == P(("stage",), None)


def test_a_parameter_drops_the_axes_it_is_gathered_over(mesh):
    assert parameter_spec(("embed", "mlp"), (8, 16), mesh, drop=("fsdp",)) == P(None, ("tensor",))


@pytest.mark.parametrize("name", ["kv_heads", "vocab"])
def test_few_key_value_heads_and_odd_vocabularies_are_whole_on_every_device(mesh, name):
    assert parameter_spec((name, "head_dim"), (3, 4), mesh) == P(None, None)


@pytest.mark.parametrize(("name", "axis"), [("heads", "tensor"), ("mlp", "tensor"), ("embed", "fsdp")])
def test_a_dimension_that_its_axis_does_not_divide_is_refused_with_axis_and_size(mesh, name, axis):
    with pytest.raises(ValueError, match=rf"{axis}=2 does not divide the dimension '{name}' of size 7: .*divisor"):
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


AXES_OF = {"matrix": matrix("embed", "mlp"), "scale": vector("width")}


def _parameters(mesh) -> dict:
    values = {"matrix": np.arange(8.0 * 4).reshape(8, 4).astype(np.float32), "scale": np.arange(8, dtype=np.float32)}
    return jax.device_put(values, shardings(AXES_OF, values, mesh))


def test_gathered_matrices_are_whole_along_fsdp_and_in_the_compute_dtype(mesh):
    params = _parameters(mesh)
    with jax.set_mesh(mesh):
        ready = jax.jit(lambda p: gather(p, AXES_OF, "bfloat16"))(params)
    assert {name: p.dtype.name for name, p in ready.items()} == {"matrix": "bfloat16", "scale": "float32"}
    assert params["matrix"].sharding.shard_shape((8, 4)) == (4, 2)
    assert ready["matrix"].sharding.shard_shape((8, 4)) == (8, 2)
    assert_close(ready["matrix"].astype(np.float32), params["matrix"], EXACT)


def test_gradients_of_gathered_parameters_come_back_in_shards_and_in_float32(mesh):
    params = _parameters(mesh)
    x = jax.device_put(np.ones((4, 8), np.float32), NamedSharding(mesh, P(("data", "fsdp"))))

    def loss(params):
        ready = gather(params, AXES_OF, "bfloat16")
        return jnp.sum((x * ready["scale"][None]).astype(jnp.bfloat16) @ ready["matrix"])

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss))(params)
    assert {g.dtype.name for g in gradient.values()} == {"float32"}
    assert gradient["matrix"].sharding.shard_shape((8, 4)) == (4, 2)
    assert_close(gradient["matrix"], np.broadcast_to(4 * np.arange(8.0)[:, None], (8, 4)), EXACT)


def test_what_a_gather_may_cast_is_said_by_the_parameter_not_by_its_shape(mesh):
    """The bias of a projection by heads has two axes, the codes of a quantized matrix must not be rounded."""
    axes = {"bias": vector("heads", "head_dim"), "codes": Axes(("embed", "mlp"), Kind.CODES, cast=False)}
    params = {"bias": jnp.full((4, 2), 1.001), "codes": jnp.full((8, 4), 1.001)}
    with jax.set_mesh(mesh):
        ready = jax.jit(lambda p: gather(p, axes, "bfloat16"))(params)
        gradient = jax.jit(jax.grad(lambda p: sum(jnp.sum(w * 1.001) for w in gather(p, axes, "bfloat16").values())))(
            params
        )
    assert_close(ready, params, EXACT)
    assert {g.dtype.name for g in gradient.values()} == {"float32"}
