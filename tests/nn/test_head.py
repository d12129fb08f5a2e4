"""The head: cross-entropy against its formula in float64; tiles of the vocabulary change nothing on any mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import matrix, random_params, variant
from tolerances import CLOSED_FORM_LAYER, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.heads import TransformedHead
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.param import merge
from jaxtrain.shapes import ModelState

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


BIAS = RNG.standard_normal(W).astype(np.float32)


@pytest.mark.parametrize("tile", [W, 5])
def test_a_bias_is_added_before_the_cap_whole_or_in_tiles_and_has_no_part_in_rows_that_are_no_words(tile):
    words, x64, table64 = W - 3, X.astype(np.float64), TABLE.astype(np.float64)
    capped = 3.0 * np.tanh((0.3 * x64 @ table64.T + BIAS) / 3.0)[..., :words]
    targets = np.minimum(TARGETS, words - 1)

    def loss(x, table, bias):
        head = _head(table, tile=tile, softcap=3.0)._replace(scale=0.3, words=words, bias=bias)
        return head.cross_entropy(x, targets).nll.mean()

    value, (dx, dtable, dbias) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(X, TABLE, BIAS)
    at_target = np.take_along_axis(capped, targets[..., None], -1)[..., 0]
    assert_close(value, np.mean(np.log(np.exp(capped).sum(-1)) - at_target), CLOSED_FORM_LAYER)
    probability = np.exp(capped - np.log(np.exp(capped).sum(-1, keepdims=True)))
    dz = np.zeros((B, L, W))
    dz[..., :words] = (probability - np.eye(words)[targets]) * (1 - (capped / 3.0) ** 2) / (B * L)
    assert_close(dbias, dz.sum((0, 1)), CLOSED_FORM_LAYER)
    assert_close(dx, 0.3 * dz @ table64, CLOSED_FORM_LAYER)
    assert_close(dtable, 0.3 * np.einsum("blw,bld->wd", dz, x64), CLOSED_FORM_LAYER)
    logits = _head(softcap=3.0)._replace(scale=0.3, words=words, bias=jnp.asarray(BIAS)).logits(X)
    assert_close(logits[..., :words], capped, CLOSED_FORM_LAYER)


def test_a_transform_stands_between_the_final_norm_and_the_table():
    """gelu(x) = x Phi(x), and a norm of root mean square, in float64."""
    config = variant(head=TransformedHead(), vocab_multiple=5)
    graph, _, _ = abstract_model(config)
    params = random_params(config)
    x = RNG.standard_normal((1, 3, 32)).astype(np.float32)
    p = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)

    def normed(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale

    h = normed(x.astype(np.float64), p["final_norm"]["scale"])
    h = h @ p["transform"]["dense"]["kernel"] + p["transform"]["dense"]["bias"]
    h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
    desired = normed(h, p["transform"]["norm"]["scale"]) @ p["embedding"]["table"].T + p["logit_bias"]
    assert len(params["logit_bias"]) == 65 and "output" not in params
    assert_close(
        merge(graph, ModelState(params, {}, {})).head.logits(x)[..., :64], desired[..., :64], CLOSED_FORM_LAYER
    )


def test_a_scale_multiplies_the_logits_before_the_cap():
    head = _head(softcap=3.0)._replace(scale=0.3)
    desired = 3.0 * np.tanh(0.3 * _logits() / 3.0)
    assert_close(head.logits(X), desired, CLOSED_FORM_LAYER)
    at_target = np.take_along_axis(desired, TARGETS[..., None], -1)[..., 0]
    assert_close(head.cross_entropy(X, TARGETS).nll, np.log(np.exp(desired).sum(-1)) - at_target, CLOSED_FORM_LAYER)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("tile", [W, 6])
def test_cross_entropy_is_minus_the_log_probability_of_the_target(tile, softcap):
    actual = jax.jit(lambda x: _head(tile=tile, softcap=softcap).cross_entropy(x, TARGETS))(X)
    logits = _logits(softcap)
    log_z = np.log(np.exp(logits).sum(-1))
    at_target = np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    assert_close(tuple(actual), (log_z - at_target, log_z), CLOSED_FORM_LAYER)


@pytest.mark.parametrize("tile", [W, 8])
def test_the_gradient_of_the_hidden_states_is_probability_minus_one_at_the_target_through_the_table(tile):
    gradient = jax.jit(jax.grad(lambda x: _head(tile=tile).cross_entropy(x, TARGETS).nll.sum()))(X)
    logits = _logits()
    probability = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    assert_close(gradient, (probability - np.eye(W)[TARGETS]) @ TABLE.astype(np.float64), CLOSED_FORM_LAYER)


def _loss(x, table, bias, tile):
    nll, log_z = _head(table, tile=tile, softcap=3.0)._replace(bias=bias).cross_entropy(x, TARGETS)
    return jnp.sum(nll + 0.1 * jnp.square(log_z))


@pytest.fixture(scope="module")
def whole():
    return jax.jit(jax.value_and_grad(_loss, argnums=(0, 1, 2)), static_argnums=3)(X, TABLE, BIAS, W)


@pytest.mark.parametrize("tile", [2, 5])
@pytest.mark.parametrize("mesh", [MeshConfig(data=8, fsdp=1), MeshConfig(fsdp=2, tensor=4)])
def test_tiles_change_neither_loss_nor_gradients_on_any_mesh(mesh, tile, whole):
    with jax.set_mesh(mesh.build()):
        tiled = jax.jit(jax.value_and_grad(_loss, argnums=(0, 1, 2)), static_argnums=3)(X, TABLE, BIAS, tile)
    assert_close(tiled, whole, SAME_SUMS)


def test_no_logits_of_more_than_a_tile_exist():
    text = jax.jit(jax.grad(_loss, argnums=(0, 1)), static_argnums=3).lower(X, TABLE, BIAS, 6).as_text()
    assert f"{B}x{L}x6xf32" in text and f"{B}x{L}x{W}xf32" not in text


def test_gradients_of_all_tiles_of_the_table_wait_in_the_compute_dtype():
    def loss(table):
        return _head(table, tile=6, dtype="bfloat16").cross_entropy(X.astype(jnp.bfloat16), TARGETS).nll.sum()

    text = jax.jit(jax.grad(loss)).lower(TABLE).as_text()
    assert f"4x6x{D}xbf16" in text
