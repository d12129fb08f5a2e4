"""Cross-entropy of hidden states against its formula in float64; tiles of the vocabulary change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import matrix
from tolerances import CLOSED_FORM_LAYER, EXACT, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.cross_entropy import HeadConfig, cross_entropy, tiles

B, L, D, W = 4, 6, 8, 24
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, L, D)).astype(np.float32)
TABLE = RNG.standard_normal((W, D)).astype(np.float32)
TARGETS = RNG.integers(0, W, (B, L)).astype(np.int32)
HEAD = HeadConfig(matrix("vocab", "embed"), "float32", None)


def _logits(softcap: float | None = None) -> np.ndarray:
    logits = X.astype(np.float64) @ TABLE.T.astype(np.float64)
    return logits if softcap is None else softcap * np.tanh(logits / softcap)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("tile", [None, 6])
def test_cross_entropy_is_minus_the_log_probability_of_the_target(tile, softcap):
    actual = cross_entropy(X, TABLE, TARGETS, HEAD._replace(softcap=softcap), tile=tile)
    logits = _logits(softcap)
    log_z = np.log(np.exp(logits).sum(-1))
    gold = np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    assert_close(tuple(actual), (log_z - gold, log_z), CLOSED_FORM_LAYER)


def test_the_gradient_of_the_hidden_states_is_probability_minus_one_at_the_target_through_the_head():
    gradient = jax.grad(lambda x: cross_entropy(x, TABLE, TARGETS, HEAD, tile=8).nll.sum())(X)
    logits = _logits()
    probability = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    assert_close(gradient, (probability - np.eye(W)[TARGETS]) @ TABLE.astype(np.float64), CLOSED_FORM_LAYER)


def test_huge_logits_are_finite():
    log_z = cross_entropy(X * 1e4, TABLE, TARGETS, HEAD, tile=8).log_z
    assert_close(log_z / 1e4, _logits().max(-1).astype(np.float32), CLOSED_FORM_LAYER)


def _loss(x, table, tile):
    nll, log_z = cross_entropy(x, table, TARGETS, HEAD._replace(softcap=3.0), tile=tile)
    return jnp.sum(nll + 0.1 * jnp.square(log_z))


@pytest.mark.parametrize("mesh", [MeshConfig(data=8, fsdp=1), MeshConfig(fsdp=2, tensor=4)])
def test_tiles_change_neither_loss_nor_gradients_on_any_mesh(mesh):
    whole = jax.value_and_grad(_loss, argnums=(0, 1))(X, TABLE, None)
    with jax.set_mesh(mesh.build()):
        tiled = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1)), static_argnums=2)(X, TABLE, 2)
    assert_close(tiled, whole, SAME_SUMS)


def test_no_logits_of_more_than_a_tile_exist():
    text = jax.jit(jax.grad(_loss, argnums=(0, 1)), static_argnums=2).lower(X, TABLE, 6).as_text()
    assert f"{B}x{L}x6xf32" in text and f"{B}x{L}x{W}xf32" not in text


@pytest.mark.parametrize(
    ("rows", "most", "count"), [(32000, 8192, 4), (128256, 8192, 16), (50257, 8192, 29), (7, 3, 7), (256, None, 1)]
)
def test_tiles_are_equal_and_as_few_as_can_be(rows, most, count):
    assert tiles(rows, most) == count


def test_bf16_gradients_of_many_tiles_are_summed_in_float32():
    """A tile's gradient of 1 and 255 of 1/256 behind it, over 256: summed in bf16, they would stay at 1."""
    x = jnp.zeros((1, 1, 1), jnp.bfloat16)
    table = jnp.concatenate([jnp.ones((1, 1)), jnp.full((255, 1), 2.0**-8)])
    head = HEAD._replace(dtype="bfloat16")
    targets = jnp.zeros((1, 1), jnp.int32)
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, table, targets, head, tile=1).log_z.sum()))(x)
    assert_close(gradient[0, 0, 0], jnp.bfloat16((1 + 255 / 256) / 256), EXACT)
