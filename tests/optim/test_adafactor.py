"""Adafactor: the size of its steps, and what it keeps of second moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import RATES, build
from tiny import matrix, size_of, vector
from tolerances import CLOSED_FORM, CLOSED_FORM_LAYER, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.presets import llama
from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.planning.collectives import collectives
from jaxtrain.sharding import shardings

QUERY = matrix("repeats", "embed", "heads", "head_dim")
OUTPUT = matrix("repeats", "heads", "head_dim", "embed")


@pytest.mark.parametrize(("first", "expected"), [(0.01, [-0.01, -1.0]), (1.0, [-1.0, -1.0])])
def test_a_layer_moves_in_proportion_to_its_own_weights(first, expected):
    params = {"w": jnp.stack([jnp.full((2, 2), first), jnp.full((2, 2), 1.0)])}
    gradient = jax.tree.map(jnp.ones_like, params)
    tx = build(Adafactor(learning_rate=RATES), rate=1.0, axes={"w": matrix("repeats", "embed", "mlp")})
    updates, _ = tx.update(gradient, tx.init(params), params)
    desired = np.broadcast_to(np.reshape(expected, (2, 1, 1)), (2, 2, 2))
    assert_close(updates["w"], desired, CLOSED_FORM_LAYER)


def test_large_matrices_keep_rows_and_columns_and_small_ones_and_vectors_keep_all():
    axes = {
        "up": matrix("repeats", "embed", "mlp"),
        "down": matrix("repeats", "mlp", "embed"),
        "scale": vector("repeats", "width"),
    }
    shapes = {"up": (130, 128, 256), "down": (130, 127, 128), "scale": (130, 128)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    kept, *_ = jax.eval_shape(build(Adafactor(learning_rate=RATES), axes=axes).init, params)[0]
    assert {kept.v_row["up"].shape, kept.v_col["up"].shape} == {(130, 128), (130, 256)}
    assert kept.v["up"].size == 130 and kept.v["down"].shape == shapes["down"]
    assert kept.v["scale"].shape == (130, 128)  # as many layers as width: a vector a layer all the same


def _attention(side: tuple[int, ...]) -> tuple[jax.Array, optax.GradientTransformation]:
    """Return a gradient of two layers of a projection, and Adafactor at a rate of one."""
    axes = (
        matrix("repeats", "embed", "heads", "head_dim")
        if side == (256,)
        else matrix("repeats", "heads", "head_dim", "embed")
    )
    shape = (2, 256, 4, 64) if side == (256,) else (2, 4, 64, 256)
    gradient = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return gradient, build(Adafactor(learning_rate=RATES, clipping_threshold=1e9), rate=1.0, axes={"w": axes})


@pytest.mark.parametrize("side", [(256,), (4, 64)], ids=["query", "output"])
def test_a_projection_by_heads_factors_as_the_matrix_it_is(side):
    gradient, tx = _attention(side)
    params = {"w": np.ones_like(gradient)}
    updates, _ = jax.jit(tx.update)({"w": gradient}, tx.init(params), params)
    for layer, update in zip(gradient.astype(np.float64), updates["w"], strict=True):
        squares = np.square(layer).reshape(256, 256)
        rows, columns = squares.mean(axis=1, keepdims=True), squares.mean(axis=0, keepdims=True)
        direction = layer / np.sqrt(rows * columns / rows.mean()).reshape(layer.shape)
        assert_close(update, -direction, CLOSED_FORM_LAYER)


def test_a_sharded_update_gathers_rows_and_columns_and_no_matrix():
    axes = {
        "query": matrix("repeats", "embed", "heads", "head_dim"),
        "output": matrix("repeats", "heads", "head_dim", "embed"),
    }
    random, shapes = np.random.default_rng(0), {"query": (4, 256, 8, 32), "output": (4, 8, 32, 256)}
    params, gradient = ({n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(2))
    tx, mesh = build(Adafactor(learning_rate=RATES), axes=axes), MeshConfig(stage=2, fsdp=2, tensor=2).build()
    alone, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    layout = shardings(axes, params, mesh)
    with jax.set_mesh(mesh):
        given = jax.device_put(gradient, layout), tx.init(params), jax.device_put(params, layout)
        compiled = jax.jit(tx.update, out_shardings=(layout, None)).lower(*given).compile()
        updates, _ = compiled(*given)
    found = collectives(compiled.as_text()).items
    assert found and max(item.bytes for item in found) <= 4 * max(4 * 256, 4 * 8 * 32)
    assert_close(updates, alone, CLOSED_FORM)


def test_the_state_of_tinyllama_is_under_a_million_numbers():
    tinyllama = llama(vocab_size=32000, d_model=2048, layers=22, heads=32, kv_heads=4, hidden=5632, max_length=2048)
    _, (shapes, *_), (axes, *_) = abstract_model(tinyllama)
    state = jax.eval_shape(build(Adafactor(learning_rate=RATES), axes=axes).init, shapes)
    assert size_of(shapes) > 1.1e9 and size_of(state) < 1_000_000
