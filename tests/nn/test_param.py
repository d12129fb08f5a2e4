"""Initial values, logical names and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import PRESETS
from tolerances import EXACT, assert_close

from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.layer import Keys, TokenContext, dropout
from jaxtrain.nn.param import constant, normal
from jaxtrain.train.state import initial_model


@pytest.mark.parametrize("fan_in", [16, 1024])
def test_a_normal_parameter_has_variance_one_over_fan_in_and_no_value_past_two_deviations(fan_in):
    w = np.asarray(normal(jax.random.key(0), (400, 300), ("embed", "mlp"), fan_in=fan_in)[...])
    assert w.std() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert abs(w.mean()) < 4 * fan_in**-0.5 / w.size**0.5
    assert abs(w).max() <= 2 * fan_in**-0.5 / 0.87962566


@pytest.fixture(scope="module")
def llama3() -> dict:
    return jax.jit(initial_model, static_argnums=0)(PRESETS["llama3"], jax.random.key(0)).params


def test_every_matrix_of_a_decoder_starts_with_the_deviation_of_its_own_fan_in(llama3):
    block = llama3["stacks"]["blocks"]["blocks"][0]
    D, F, HK = 64, 160, 64
    mixer = {"query": D, "key": D, "value": D, "output": HK}
    for layer, fan_ins in (("mixer", mixer), ("mlp", {"gate": D, "up": D, "down": F})):
        for name, fan_in in fan_ins.items():
            assert np.std(block[layer][name]["kernel"]) == pytest.approx(fan_in**-0.5, rel=0.05), name
    for table in (llama3["embedding"]["table"], llama3["output"]["kernel"]):
        assert np.std(table) == pytest.approx(D**-0.5, rel=0.05)
    assert_close(block["mixer_norm"]["scale"], np.ones((2, D), np.float32), EXACT)


def test_layers_of_a_stack_start_different(llama3):
    query = llama3["stacks"]["blocks"]["blocks"][0]["mixer"]["query"]["kernel"].reshape(2, -1)
    assert abs(np.corrcoef(query)[0, 1]) < 0.1


@pytest.mark.parametrize("name", PRESETS)
def test_every_axis_of_every_parameter_has_a_name(name):
    _, (shapes, *_), (axes, *_) = abstract_model(PRESETS[name])
    jax.tree.map(lambda own, leaf: _check_names(own.names, leaf.shape), axes, shapes)


def _check_names(names: tuple, shape: tuple) -> None:
    assert len(names) == len(shape), (names, shape)
    assert all(names), names


def test_parameters_are_float32():
    params = [normal(jax.random.key(0), (2, 2), ("embed", "mlp"), fan_in=2), constant(1.0, (2,), ("width",))]
    assert [p[...].dtype for p in params] == [jnp.float32] * 2
    assert all(isinstance(p, nnx.Param) for p in params)


ROWS = 6


@pytest.fixture
def keys():
    rows = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(3), jnp.arange(ROWS))
    return Keys(rows, jax.random.key(4))


def test_dropout_without_keys_is_the_identity():
    x = jnp.ones((ROWS, 4))
    assert dropout(x, 0.5, None, site=0) is x


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_rate_and_keeps_the_mean(keys, rate):
    y = np.asarray(dropout(jnp.ones((ROWS, 100, 50)), rate, keys, site=0))
    deviation = (rate * (1 - rate) / y.size) ** 0.5
    assert abs((y == 0).mean() - rate) < 4 * deviation
    assert_close(y[y != 0], np.full((y != 0).sum(), 1 / (1 - rate), np.float32), EXACT)


def test_what_is_dropped_of_an_example_does_not_depend_on_its_neighbours(keys):
    x = jax.random.normal(jax.random.key(0), (ROWS, 20, 4))
    whole, order = dropout(x, 0.3, keys, site=1), np.array([4, 0, 5])
    assert_close(dropout(x[order], 0.3, keys._replace(rows=keys.rows[order]), site=1), whole[order], EXACT)


def test_examples_sites_and_layers_drop_different_elements(keys):
    x = jnp.ones((ROWS, 400))

    def masks(keys, site):
        return np.asarray(dropout(x, 0.5, keys, site)) == 0

    tokens = jnp.zeros((ROWS, 1), jnp.int32)
    context = TokenContext(tokens, tokens, tokens, tokens, keys=keys)
    layer0, layer1 = (masks(context.in_layer(i).keys, 0) for i in (0, 1))
    pairs = [(masks(keys, 0)[0], masks(keys, 0)[1]), (masks(keys, 0), masks(keys, 1)), (layer0, layer1)]
    for one, other in pairs:
        assert abs((one == other).mean() - 0.5) < 0.13


def test_a_context_without_keys_stays_without_them_in_a_layer():
    tokens = jnp.zeros((1, 1), jnp.int32)
    assert TokenContext(tokens, tokens, tokens, tokens).in_layer(2).keys is None
