"""Every linear is the matrix that it stands for, with its bias: values, gradients, facts, and on a mesh.

A new kind adds a line to CASES.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import EIGHT_BITS, FOUR_BITS, SAME_SUMS, OfNorm, assert_close

from jaxtrain.axes import Axes, Kind
from jaxtrain.cli.config_types import subclasses
from jaxtrain.fully_sharded import gather
from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.linear.dora import DoRA
from jaxtrain.nn.linear.int8 import Int8
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.low_rank import LowRank
from jaxtrain.nn.linear.nf4 import NF4
from jaxtrain.nn.linear.some import Some
from jaxtrain.nn.param import Adapter, axes_of, merge, split
from jaxtrain.sharding import constrain, shardings


class Case(NamedTuple):
    """A linear, how near its product is to that with its matrix, and how near its matrix is to one it is given."""

    config: LinearConfig
    product: OfNorm = SAME_SUMS
    given: OfNorm = SAME_SUMS


CASES = [
    Case(Dense()),
    Case(LowRank(rank=8)),
    Case(LoRA(rank=4)),
    Case(LoRA(rank=4, base=NF4(block=8)), given=FOUR_BITS),
    Case(DoRA(rank=4, alpha=2.0)),
    Case(NF4(block=8)),
    Case(Int8(), product=EIGHT_BITS, given=EIGHT_BITS),
]
CHOICES = {Some}  # they build the linears of others (tests/nn/test_some.py)

WIDTH, HIDDEN = (16, "embed"), (24, "mlp")
HEADS = (4, "heads"), (6, "head_dim")
VOCAB = (40, "vocab")
SHAPES = {
    "up": ((WIDTH,), (HIDDEN,), False),
    "down": ((HIDDEN,), (WIDTH,), False),
    "to heads": ((WIDTH,), HEADS, False),
    "from heads": (HEADS, (WIDTH,), False),
    "head": ((WIDTH,), (VOCAB,), True),
}
ROWS, LENGTH = 8, 4
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.config))
every_linear = pytest.mark.parametrize("config", [case.config for case in CASES], ids=repr)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def test_every_linear_has_a_case_and_says_what_it_is():
    kinds = {kind for kind in subclasses(LinearConfig).values() if kind.__module__.startswith("jaxtrain.")}
    assert kinds - CHOICES == {type(case.config) for case in CASES}
    assert all(kind.paper and kind.__doc__ for kind in kinds)


def _built(config: LinearConfig, shape: tuple, *, bias: bool, seed: int = 0) -> nnx.Module:
    """Return the linear with no bias 0, so that a test sees it."""
    inputs, outputs, outputs_first = shape
    module = config.build(inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=nnx.Rngs(seed))
    if bias:
        module.bias[...] = jnp.asarray(_noise(module.bias.shape, 1))
    return module


def _adapted(module: nnx.Module) -> nnx.Module:
    """Return the linear with adapters that are not zero."""
    for number, (_, part) in enumerate(nnx.iter_modules(module)):
        for name, variable in vars(part).items():
            if isinstance(variable, Adapter):
                variable[...] += 0.1 * _noise(variable.shape, number + len(name))
    return module


def _noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _sizes(side: tuple) -> tuple[int, ...]:
    return tuple(size for size, _ in side)


def _x(shape: tuple) -> np.ndarray:
    return _noise((ROWS, LENGTH, *_sizes(shape[0])), 2)


def _by_its_matrix(module, x: jax.Array, shape: tuple) -> jax.Array:
    """Return x @ dense() + bias, the definition."""
    inputs, outputs, outputs_first = shape
    rows, columns = int(np.prod(_sizes(inputs))), int(np.prod(_sizes(outputs)))
    matrix = module.dense().reshape(columns, rows).T if outputs_first else module.dense().reshape(rows, columns)
    y = (x.reshape(-1, rows) @ matrix).reshape(ROWS, LENGTH, *_sizes(outputs))
    return y + module.bias[...][None, None]


@every_case
def test_it_is_the_product_with_its_matrix_and_so_is_its_gradient(case):
    """In every shape, which have one program together."""
    graphs, models = {}, {}
    for name, shape in SHAPES.items():
        graphs[name], models[name] = split(_adapted(_built(case.config, shape, bias=True)))

    def one(name, params, x, product):
        shape = SHAPES[name]
        y = product(merge(graphs[name], models[name]._replace(params=params)), x, shape)
        return jnp.sum(_noise((ROWS, LENGTH, *_sizes(shape[1])), 3) * y), y

    def loss(params, xs, product):
        found = {name: one(name, params[name], x, product) for name, x in xs.items()}
        return sum(total for total, _ in found.values()), {name: y for name, (_, y) in found.items()}

    def value_and_gradient(product):
        both = jax.value_and_grad(lambda params, xs: loss(params, xs, product), argnums=(0, 1), has_aux=True)
        return jax.jit(both)(_params(models), {name: _x(shape) for name, shape in SHAPES.items()})

    (_, y), gradient = value_and_gradient(lambda module, x, _: module(x))
    (_, desired), desired_gradient = value_and_gradient(_by_its_matrix)
    assert_close(y, desired, case.product)
    assert_close(gradient, desired_gradient, case.product)


@every_case
@every_shape
def test_it_takes_the_matrix_of_another_and_none_changes_by_an_adapter_of_its_own(case, shape):
    """The other is one of the same kind, so its matrix is one that the kind has, but for what adapters add to codes."""
    matrix = _adapted(_built(case.config, shape, bias=False)).dense()
    module = _adapted(_built(case.config, shape, bias=False, seed=1))
    module.set_dense(matrix)
    assert_close(module.dense(), matrix, case.given)


@every_linear
@every_shape
def test_the_matrix_has_the_axes_asked_for_and_the_deviation_of_its_fan_in(config, shape):
    inputs, outputs, outputs_first = shape
    modules = [_built(config, shape, bias=False, seed=seed) for seed in range(10)]
    matrices = np.stack([module.dense() for module in modules])
    assert all(module.bias is None for module in modules)
    assert matrices.shape[1:] == _sizes((*outputs, *inputs) if outputs_first else (*inputs, *outputs))
    assert np.std(matrices) == pytest.approx(np.prod(_sizes(inputs)) ** -0.5, rel=0.1)


@every_linear
@every_shape
def test_every_variable_says_what_it_is(config, shape):
    module = _built(config, shape, bias=True)
    for variable in jax.tree.leaves(nnx.state(module), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        assert isinstance(variable.axes, Axes) and len(variable.axes.names) == variable.ndim
    assert module.bias.axes.kind is Kind.VECTOR and "embed" not in module.bias.axes.names


@every_linear
@every_shape
def test_a_gather_keeps_its_bias_and_the_product_is_in_the_dtype_of_the_activations(config, shape):
    graph, model = split(_built(config, shape, bias=True))
    axes = axes_of(merge(graph, model))

    def ready(model, x):
        module = merge(graph, gather(model, axes, "bfloat16"))
        return module.bias[...], module(x)

    bias, y = jax.eval_shape(ready, model, jax.ShapeDtypeStruct(_x(shape).shape, jnp.bfloat16))
    assert (bias.dtype, y.dtype) == (jnp.float32, jnp.bfloat16)


def _params(models: dict) -> dict:
    return {name: model.params for name, model in models.items()}


@every_linear
def test_it_is_the_same_over_a_mesh(config):
    """In shards over `fsdp`, gathered for use, heads and feed-forward channels over `tensor`."""
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    graphs, models, axes = {}, {}, {}
    for name, shape in SHAPES.items():
        module = _adapted(_built(config, shape, bias=True))
        graphs[name], models[name] = split(module)
        axes[name] = axes_of(module)

    def one(name, model):
        x = constrain(_x(SHAPES[name]), "batch", *[None] * (len(SHAPES[name][0]) + 1))
        y = merge(graphs[name], gather(model, axes[name], "float32"))(x)
        names = ("width" if axis == "embed" else axis for _, axis in SHAPES[name][1])
        return constrain(y, "batch", None, *names)

    def loss(params, models):
        y = {name: one(name, own._replace(params=params[name])) for name, own in models.items()}
        return sum(jnp.mean(jnp.square(own)) for own in y.values()), y

    step = jax.value_and_grad(loss, has_aux=True)
    (_, desired), desired_gradient = jax.jit(step)(_params(models), models)
    with jax.set_mesh(mesh):
        models = jax.device_put(models, shardings(axes, models, mesh))
        placed = _params(models)
        (_, y), gradient = jax.jit(step)(placed, models)
    assert_close(y, desired, SAME_SUMS)
    assert_close(gradient, desired_gradient, SAME_SUMS)
    laid_out = jax.tree.map(lambda own, w: own.sharding.is_equivalent_to(w.sharding, w.ndim), gradient, placed)
    assert all(jax.tree.leaves(laid_out)), laid_out
