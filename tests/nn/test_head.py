"""The head: cross-entropy against its formula in float64; tiles of the vocabulary change nothing on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import matrix
from tolerances import CLOSED_FORM_LAYER, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.heads.head import Head

B, L, D, W = 4, 6, 8, 24
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, L, D)).astype(np.float32)
TABLE = RNG.standard_normal((W, D)).astype(np.float32)
TARGETS = RNG.integers(0, W, (B, L)).astype(np.int32)


def _head(table=TABLE, *, tile: int = W, softcap: float | None = None, dtype: str = "float32") -> Head:
    """Return a head whose norm is none."""
    return Head(lambda x: x, jnp.asarray(table), matrix("vocab", "embed"), dtype, softcap, tile)


def _logits(softcap: float | None = None) -> np.ndarray:
    logits = X.astype(np.float64) @ TABLE.T.astype(np.float64)
    return logits if softcap is None else softcap * np.tanh(logits / softcap)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logits_are_the_product_with_the_table(softcap):
    assert_close(_head(softcap=softcap).logits(X), _logits(softcap), CLOSED_FORM_LAYER)


def test_a_scale_multiplies_the_logits_before_the_cap():
    head = _head(softcap=3.0)._replace(scale=0.3)
    desired = 3.0 * np.tanh(0.3 * _logits() / 3.0)
    assert_close(head.logits(X), desired, CLOSED_FORM_LAYER)
    at_target = np.take_along_axis(desired, TARGETS[..., None], -1)[..., 0]
    assert_close(head.cross_entropy(X, TARGETS).nll, np.log(np.exp(desired).sum(-1)) - at_target, CLOSED_FORM_LAYER)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("tile", [W, 6])
def test_cross_entropy_is_minus_the_log_probability_of_the_target(tile, softcap):
    actual = _head(tile=tile, softcap=softcap).cross_entropy(X, TARGETS)
    logits = _logits(softcap)
    log_z = np.log(np.exp(logits).sum(-1))
    at_target = np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    assert_close(tuple(actual), (log_z - at_target, log_z), CLOSED_FORM_LAYER)


@pytest.mark.parametrize("tile", [W, 8])
def test_the_gradient_of_the_hidden_states_is_probability_minus_one_at_the_target_through_the_table(tile):
    gradient = jax.grad(lambda x: _head(tile=tile).cross_entropy(x, TARGETS).nll.sum())(X)
    logits = _logits()
    probability = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    assert_close(gradient, (probability - np.eye(W)[TARGETS]) @ TABLE.astype(np.float64), CLOSED_FORM_LAYER)


def _loss(x, table, tile):
    nll, log_z = _head(table, tile=tile, softcap=3.0).cross_entropy(x, TARGETS)
    return jnp.sum(nll + 0.1 * jnp.square(log_z))


@pytest.mark.parametrize("tile", [2, 5])
@pytest.mark.parametrize("mesh", [MeshConfig(data=8, fsdp=1), MeshConfig(fsdp=2, tensor=4)])
def test_tiles_change_neither_loss_nor_gradients_on_any_mesh(mesh, tile):
    whole = jax.value_and_grad(_loss, argnums=(0, 1))(X, TABLE, W)
    with jax.set_mesh(mesh.build()):
        tiled = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1)), static_argnums=2)(X, TABLE, tile)
    assert_close(tiled, whole, SAME_SUMS)


def test_no_logits_of_more_than_a_tile_exist():
    text = jax.jit(jax.grad(_loss, argnums=(0, 1)), static_argnums=2).lower(X, TABLE, 6).as_text()
    assert f"{B}x{L}x6xf32" in text and f"{B}x{L}x{W}xf32" not in text


def test_gradients_of_all_tiles_of_the_table_wait_in_the_compute_dtype():
    def loss(table):
        return _head(table, tile=6, dtype="bfloat16").cross_entropy(X.astype(jnp.bfloat16), TARGETS).nll.sum()

    text = jax.jit(jax.grad(loss)).lower(TABLE).as_text()
    assert f"4x6x{D}xbf16" in text
