"""A repeat in parts: F, B and W compute what automatic differentiation does, and no matrix product twice."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from jaxpr_dots import dots
from tiny import random_params, training_batch, variant
from tolerances import SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.remat import FullRemat, NoRemat, SaveDots
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.pipeline.repeat import take_apart
from jaxtrain.pipeline.stages import on_stages
from jaxtrain.shapes import ModelState
from jaxtrain.train.gradients import Loss
from jaxtrain.train.gradients.pipelined import Data, parts
from jaxtrain.train.step import step_keys

ROWS, LENGTH = 4, 16
SHAPE = (ROWS, LENGTH, 32)
# Of a repeat's forward: four projections, scores and values in the form for CPU and in that for others, three of the
# feed-forward layer.
PRODUCTS = 11
WITH_WEIGHTS = 7
SCORES = 2  # computed again in the backward of attention, in each of its two forms


def _layer(remat):
    """The decoder's repeat, and arguments for it."""
    config = variant(dropout=0.1, remat=remat)
    params = jax.tree.map(jnp.asarray, random_params(config))
    batch = training_batch(ROWS, LENGTH, vocab_size=64)
    loss = Loss.of_batch(abstract_model(config).graph, NextToken(), ModelState(params), batch)
    weights = jax.tree.map(lambda leaf: leaf[1], params["stacks"]["blocks"])
    data = Data(batch, step_keys(jax.random.key(0), ROWS), jnp.float32(1)), jnp.int32(1), {}, {}
    return parts(loss, params).repeat, weights, data, jax.random.normal(jax.random.key(1), SHAPE)


def _taken_apart(remat):
    """The repeat, what its units take, and what B and W take besides."""
    apply, *arguments = _layer(remat)
    found = []
    jax.eval_shape(lambda *arguments: found.append(take_apart(apply, *arguments)), *arguments)
    [repeat] = found
    weights, data, _ = arguments
    dy, _, residuals = jax.eval_shape(repeat.forward, *arguments)
    _, deferred = jax.eval_shape(repeat.input_gradient, weights, data, residuals, dy)
    return repeat, arguments, residuals, dy, deferred


@pytest.mark.parametrize("remat", [NoRemat(), FullRemat(), SaveDots()], ids=str)
def test_units_compute_what_automatic_differentiation_does(remat):
    apply, weights, data, x = _layer(remat)
    dy = jax.random.normal(jax.random.key(2), SHAPE)

    def desired(weights, x):
        y, pull = jax.vjp(lambda weights, x: apply(weights, data, x)[0][0], weights, x)
        return y, *pull(dy)

    def found(weights, x):
        repeat = take_apart(apply, weights, data, x)
        y, _, residuals = repeat.forward(weights, data, x)
        dx, dweights = repeat.backward(weights, data, residuals, dy)
        alone, deferred = repeat.input_gradient(weights, data, residuals, dy)
        return (y, dweights, dx), (y, repeat.weight_gradient(weights, data, residuals, deferred), alone)

    reference, (together, split) = jax.jit(lambda *both: (desired(*both), found(*both)))(weights, x)
    for result in (together, split):
        assert_close(result, reference, SAME_SUMS)


@pytest.mark.parametrize(
    ("remat", "again"),
    [(NoRemat(), 0), (FullRemat(), PRODUCTS - 1), (SaveDots(), 4)],  # the last product of a repeat is not needed again
    ids=str,
)
def test_no_matrix_product_of_b_is_repeated_in_w(remat, again):
    repeat, arguments, residuals, dy, deferred = _taken_apart(remat)
    weights, data, _ = arguments
    forward = len(dots(repeat.forward, *arguments))
    input_gradient = len(dots(repeat.input_gradient, weights, data, residuals, dy))
    weight_gradient = len(dots(repeat.weight_gradient, weights, data, residuals, deferred))
    assert (forward, weight_gradient) == (PRODUCTS, WITH_WEIGHTS)
    assert input_gradient == 2 * PRODUCTS - WITH_WEIGHTS + SCORES + again
    assert len(dots(repeat.backward, weights, data, residuals, dy)) == input_gradient + weight_gradient


def test_full_remat_keeps_the_input_alone():
    _, _, residuals, _, _ = _taken_apart(FullRemat())
    assert [value.shape for value in residuals] == [SHAPE]


@pytest.mark.parametrize("remat", [NoRemat(), FullRemat()], ids=str)
def test_no_weight_and_no_noise_lies_in_a_buffer(remat):
    _, _, residuals, _, deferred = _taken_apart(remat)
    for value in (*residuals, *deferred):
        assert value.size % (ROWS * LENGTH) == 0 and value.dtype == jnp.float32


def _with_region(weights, data, x):
    """A feed-forward layer on each device's own rows and columns; what it reads of the microbatch scales the rows."""
    scale, index = data

    def own(weights, scale, x):
        up, down = weights
        return jax.lax.psum(jnp.tanh(x @ up * scale[:, None]) @ (down * index), "tensor")

    specs = (P(None, "tensor"), P("tensor")), P("data"), P("data")
    return (x + jax.shard_map(own, in_specs=specs, out_specs=P("data"))(weights, scale, x), None), {}


def _region_arguments():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = (32, 64), (64, 32), (8, 32), (8, 32)
    up, down, x, dy = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
    return (up, down), (jnp.linspace(0.5, 1.5, 8), jnp.float32(2)), x, dy


def _on_stages(function, *arguments):
    """Inside a region that is manual over the stages, where the executor takes repeats apart."""
    mesh = MeshConfig(stage=2, fsdp=1, data=2, tensor=2).build()
    with jax.set_mesh(mesh):
        return jax.jit(lambda *arguments: on_stages(lambda _, shared: function(*shared), (), arguments))(*arguments)


def test_a_region_is_run_in_two_where_b_and_w_are():
    weights, data, x, dy = _region_arguments()
    counted = []

    def found(weights, data, x, dy):
        repeat = take_apart(_with_region, weights, data, x)
        y, _, residuals = repeat.forward(weights, data, x)
        dx, deferred = repeat.input_gradient(weights, data, residuals, dy)
        counted.append(
            [
                len(dots(f, *a))
                for f, a in (
                    (repeat.input_gradient, (weights, data, residuals, dy)),
                    (repeat.weight_gradient, (weights, data, residuals, deferred)),
                )
            ]
        )
        return y, repeat.weight_gradient(weights, data, residuals, deferred), dx

    def desired(weights, data, x, dy):
        y, pull = jax.vjp(lambda weights, x: _with_region(weights, data, x)[0][0], weights, x)
        return y, *pull(dy)

    assert_close(_on_stages(found, weights, data, x, dy), _on_stages(desired, weights, data, x, dy), SAME_SUMS)
    assert counted[0] == [2, 2]


def test_no_weight_of_a_region_lies_in_a_buffer():
    weights, data, x, _ = _region_arguments()
    shapes = []

    def look(weights, data, x):
        residuals = take_apart(_with_region, weights, data, x).forward(weights, data, x)[2]
        shapes.extend(value.shape for value in residuals)
        return x

    _on_stages(look, weights, data, x)
    assert set(shapes) == {(16, 32)}  # the four rows of each of four devices, one below the other
