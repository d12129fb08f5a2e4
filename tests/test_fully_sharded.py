"""Parameters gathered where they are used, and their gradients in shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import matrix, vector
from tolerances import EXACT, assert_close

from jaxtrain.axes import Axes, Kind
from jaxtrain.fully_sharded import gather
from jaxtrain.mesh import MeshConfig
from jaxtrain.sharding import shardings

AXES_OF = {"matrix": matrix("embed", "mlp"), "scale": vector("width")}


@pytest.fixture
def mesh():
    return MeshConfig(data=2, fsdp=2, tensor=2).build()


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
