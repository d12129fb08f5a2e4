"""Feed-forward layers against their formulas, activations written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.nn.feed_forward import gated_mlp
from jaxtrain.nn.feed_forward.activations import ACTIVATIONS
from jaxtrain.nn.feed_forward.clamped_gated_mlp import ClampedGatedMLPConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.layer import TokenContext

_erf = np.vectorize(math.erf)
FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}
_IDS = np.zeros((2, 3), np.int32)
CONTEXT = TokenContext(positions=_IDS, segment_ids=_IDS, key_positions=_IDS, key_segment_ids=_IDS)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)


def _arrays(layer: nnx.Module) -> dict:
    return jax.tree.map(lambda p: np.asarray(p, np.float64), nnx.to_pure_dict(nnx.state(layer, nnx.Param)))


@pytest.mark.parametrize("activation", FORMULAS)
def test_plain_feed_forward_is_its_formula(x, activation):
    layer = MLPConfig(hidden=12, activation=activation, bias=True).build(8, rngs=nnx.Rngs(0))
    layer.up.bias[...] = jnp.linspace(-1, 1, 12)
    layer.down.bias[...] = jnp.linspace(2, 3, 8)
    w = _arrays(layer)
    hidden = FORMULAS[activation](x @ w["up"]["kernel"] + w["up"]["bias"])
    desired = hidden @ w["down"]["kernel"] + w["down"]["bias"]
    assert_close(layer(x, CONTEXT).y, desired, CLOSED_FORM_LAYER)


@pytest.mark.parametrize("activation", FORMULAS)
def test_gated_feed_forward_is_its_formula(x, activation):
    layer = GatedMLPConfig(hidden=12, activation=activation).build(8, rngs=nnx.Rngs(0))
    w = _arrays(layer)
    hidden = FORMULAS[activation](x @ w["gate"]["kernel"]) * (x @ w["up"]["kernel"])
    desired = hidden @ w["down"]["kernel"]
    assert_close(layer(x, CONTEXT).y, desired, CLOSED_FORM_LAYER)


@pytest.mark.parametrize("on_tpu", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
def test_gradients_of_the_gated_product_have_the_bits_of_automatic_differentiation(on_tpu, activation, monkeypatch):
    monkeypatch.setattr(gated_mlp, "on_tpu", lambda: on_tpu)
    gate, up, dh = np.random.default_rng(0).standard_normal((3, 2, 3, 12)).astype(np.float32)
    _, plain = jax.vjp(lambda gate, up: ACTIVATIONS[activation](gate) * up, gate, up)
    _, ordered = jax.vjp(lambda gate, up: gated_mlp.gated(gate, up, activation), gate, up)
    for desired, found in zip(plain(dh), ordered(dh), strict=True):
        np.testing.assert_array_equal(found, desired)


def test_clamped_feed_forward_is_its_formula(x):
    layer = ClampedGatedMLPConfig(hidden=12, alpha=1.3, limit=0.5).build(8, rngs=nnx.Rngs(0))
    w = _arrays(layer)
    gate, up = np.minimum(x @ w["gate"]["kernel"], 0.5), np.clip(x @ w["up"]["kernel"], -0.5, 0.5)
    assert (gate == 0.5).any() and (np.abs(up) == 0.5).any()
    desired = (gate / (1 + np.exp(-1.3 * gate)) * (up + 1)) @ w["down"]["kernel"]
    assert_close(layer(x, CONTEXT).y, desired, CLOSED_FORM_LAYER)


def test_gated_feed_forward_has_biases(x):
    layer = GatedMLPConfig(hidden=12, bias=True).build(8, rngs=nnx.Rngs(0))
    layer.gate.bias[...], layer.up.bias[...] = jnp.linspace(-1, 1, 12), jnp.linspace(1, 2, 12)
    layer.down.bias[...] = jnp.linspace(2, 3, 8)
    w = _arrays(layer)
    gate, up = (x @ w[name]["kernel"] + w[name]["bias"] for name in ("gate", "up"))
    desired = FORMULAS["silu"](gate) * up @ w["down"]["kernel"] + w["down"]["bias"]
    assert_close(layer(x, CONTEXT).y, desired, CLOSED_FORM_LAYER)


@pytest.mark.parametrize("config", [MLPConfig, GatedMLPConfig])
def test_an_unknown_activation_is_refused_with_the_known_ones(config):
    with refused(ValueError, "activation='swish'", "silu, gelu, gelu_tanh, relu"):
        config(hidden=4, activation="swish")


def test_a_gradient_is_differentiated_in_forward_mode():
    """As products with the Hessian are made."""
    gate, up = np.random.default_rng(0).standard_normal((2, 1, 3, 4)).astype(np.float32)
    gradient = jax.grad(lambda g: jnp.sum(jnp.square(gated_mlp.gated(g, up, "silu"))))
    plain = jax.grad(lambda g: jnp.sum(jnp.square(jax.nn.silu(g) * up)))
    (_, found), (_, desired) = (jax.jvp(f, (gate,), (up,)) for f in (gradient, plain))
    assert_close(found, desired, CLOSED_FORM_LAYER)
