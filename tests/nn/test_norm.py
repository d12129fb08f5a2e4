"""Norms against their formulas in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import CLOSED_FORM, EXACT, assert_close

from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.norms.rms_norm import OffsetRMSNormConfig, RMSNormConfig

WIDTH = 24


@pytest.fixture
def x():
    return (3.0 + 2.0 * np.random.default_rng(0).standard_normal((2, 5, WIDTH))).astype(np.float32)


@pytest.fixture
def scale():
    return np.random.default_rng(1).standard_normal(WIDTH).astype(np.float32)


@pytest.mark.parametrize(("config", "offset"), [(RMSNormConfig, 0), (OffsetRMSNormConfig, 1)])
def test_rms_norm_divides_by_the_root_mean_square(x, scale, config, offset):
    norm = config(epsilon=0.5).build(WIDTH)
    norm.scale[...] = jnp.asarray(scale)
    x64 = x.astype(np.float64)
    desired = x64 / np.sqrt(np.mean(x64**2, -1, keepdims=True) + 0.5) * (scale + offset)
    assert_close(norm(x), desired, CLOSED_FORM)


@pytest.mark.parametrize("config", [RMSNormConfig, OffsetRMSNormConfig])
def test_a_fresh_rms_norm_gives_mean_square_one(x, config):
    y = config().build(WIDTH)(x)
    assert_close(np.mean(np.square(y), axis=-1), np.ones((2, 5)), CLOSED_FORM)


def test_layer_norm_divides_by_the_standard_deviation(x, scale):
    norm = LayerNormConfig(epsilon=0.5).build(WIDTH)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(scale[::-1])
    x64 = x.astype(np.float64)
    centred = x64 - x64.mean(-1, keepdims=True)
    desired = centred / np.sqrt(x64.var(-1, keepdims=True) + 0.5) * scale + scale[::-1]
    assert_close(norm(x), desired, CLOSED_FORM)


def test_layer_norm_without_bias_has_no_bias_parameter():
    assert not any("bias" in name for name in vars(LayerNormConfig(bias=False).build(WIDTH)))


@pytest.mark.parametrize("config", [RMSNormConfig(), LayerNormConfig()])
def test_norms_of_bfloat16_are_computed_in_float32_and_rounded_once(x, config):
    norm = config.build(WIDTH)
    x16 = jnp.asarray(x, jnp.bfloat16)
    y = norm(x16)
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), norm(x16.astype(jnp.float32)).astype(jnp.bfloat16).astype(jnp.float32), EXACT)
